"""A job that a scheduler has is not run by another executor at the same time."""

from collections.abc import Collection, Mapping
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError

from . import slurm
from .entries import Entries
from .on_host import Local
from .settings import ExecutorSettings
from .slurm import NoAnswer

QUERIES = {"slurm": (slurm.states, slurm.named), "local": (Local.states, Local.named)}
CANCELLER = {"slurm": "scancel", "local": "kill"}
FOLDER = Path(ExecutorSettings.folder)
MANY = 5  # outputs that are named


def require_free(needed: Collection[str], folder: Path = FOLDER, here: str = "") -> None:
    """Returns where no scheduler other than `here` has jobs that make any of the outputs that are `needed`.

    folder: the `submitit-folder` of the run that submitted them. Raises WorkflowError with the way out.
    """
    entries = Entries(folder)
    for cluster in QUERIES.keys() - {here}:
        left: dict[str, list[str]] = {}  # outputs by the job's id, or by the batch's name where no id was noted
        for output, place in entries.places.items():
            batch = entries.batches[place.batch]
            if output in needed and batch.cluster == cluster and not entries.outcome(place):
                left.setdefault(batch.job_id(place.task) if batch.id else batch.name, []).append(output)
        if left:
            _require_over(cluster, left, folder)


def _require_over(cluster: str, left: Mapping[str, Collection[str]], folder: Path) -> None:
    back = f"`snakemake --executor submitit --submitit-cluster {cluster}`, or the profile that says so, takes them up"
    states, named = QUERIES[cluster]
    ids = [one for one in left if one[0].isdigit()]
    try:
        known = {one: (one, state) for one, state in states(ids).items() if one in left} if ids else {}
        for name in left.keys() - set(ids):
            known |= {one: (name, state) for one, state in named(name).items()}
    except NoAnswer as error:
        raise WorkflowError(
            f"SLURM may have jobs that this run needs ({folder} names them) and does not answer ({error}): {back} "
            f"where SLURM is; where it has none any more, remove {folder}"
        ) from error
    alive = {one: left[key] for one, (key, state) in known.items() if not state.end}
    if alive:
        outputs = sorted({output for found in alive.values() for output in found})
        told = ", ".join(outputs[:MANY]) + ", …" * (len(outputs) > MANY)
        raise WorkflowError(
            f"jobs that this run needs are in the queue already (an earlier run submitted them; they make {told}): "
            f"{back}; or cancel them first with `{CANCELLER[cluster]} {' '.join(sorted(alive))}`"
        )
