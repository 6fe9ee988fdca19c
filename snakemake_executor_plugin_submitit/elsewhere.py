"""A job that a scheduler has, or may have without listing it yet, is not run by another executor at the same time."""

import math
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError

from fusion.artifacts import new_file

from . import slurm
from .entries import Batch, Entries, here
from .lock import Lock
from .on_host import Local
from .settings import ExecutorSettings
from .slurm import NoAnswer

QUERIES = {"slurm": (slurm.states, slurm.named), here("local"): (Local.states, Local.named)}
FOLDER = Path(ExecutorSettings.folder)
OTHERS = "folders"  # a file in that one, which names others
MANY = 5  # outputs that are named


@dataclass
class Left:
    """What was submitted under one id, or one name, and has left no outcome."""

    batch: Batch
    outputs: list[str] = field(default_factory=list)


def require_free(needed: Collection[str], folder: Path = FOLDER, own: str = "") -> None:
    """Returns where no place other than our `own` has jobs that make any of the outputs that are `needed`.

    folder: the `submitit-folder` of the run that submitted them. Raises WorkflowError with the way out.
    """
    entries = Entries(folder)
    for cluster in {batch.cluster for batch in entries.batches.values()} - {own}:
        left: dict[str, Left] = {}  # by the job's id, or by the batch's name where no id was noted
        for output, place in entries.live.items():
            batch = entries.batches[place.batch]
            if output in needed and batch.cluster == cluster and not entries.outcome(place):
                key = batch.job_id(place.task) if batch.id else batch.name
                left.setdefault(key, Left(batch)).outputs.append(output)
        if left:
            _require_over(cluster, left, folder)


def hold_free(needed: Collection[str]) -> list[Lock]:
    """The same for every folder of submissions of this workflow, whose locks are returned: nobody submits meanwhile."""
    folders = [FOLDER]
    with suppress(OSError):
        folders += map(Path, (FOLDER / OTHERS).read_text(encoding="utf-8").splitlines())
    locks = []
    for folder in filter(Path.is_dir, folders):
        require_free(needed, folder)
        try:
            locks.append(Lock(folder / "lock"))
        except (RuntimeError, OSError) as error:
            raise WorkflowError(f"cannot run jobs beside a process that submits some: {error}") from error
    return locks


def remember(folder: Path) -> None:
    """Lets other executors know of a folder of submissions that is not the usual one."""
    if folder.absolute() == FOLDER.absolute():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    known = set()
    with suppress(OSError):
        known = set((FOLDER / OTHERS).read_text(encoding="utf-8").splitlines())
    with new_file(FOLDER / OTHERS) as file:
        file.write_text("\n".join(sorted(known | {str(folder)})), encoding="utf-8")


def _require_over(cluster: str, left: Mapping[str, Left], folder: Path) -> None:
    option = f"--submitit-cluster {cluster.partition(' on ')[0]}"
    back = f"`snakemake --executor submitit {option}`, or the profile that says so, takes them up"
    if cluster not in QUERIES:
        raise WorkflowError(
            f"processes of another host may be at work on what this run needs ({cluster}; {folder} names them): {back} "
            f"there; where none runs any more, remove {folder}"
        )
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
    now, listed = time.time(), {key for key, _ in known.values()}
    unlisted = {key: one for key, one in left.items() if key not in listed and one.batch.unlisted_for(now) > 0}
    if alive or unlisted:
        raise WorkflowError(_refusal(cluster, alive, unlisted, back, now))


def _refusal(cluster: str, alive: Mapping[str, Left], unlisted: Mapping[str, Left], back: str, now: float) -> str:
    """Why this run cannot be, and the ways out; alive: by id; unlisted: by id, or by name where no id was noted."""
    outputs = sorted({output for one in (*alive.values(), *unlisted.values()) for output in one.outputs})
    told = ", ".join(outputs[:MANY]) + ", …" * (len(outputs) > MANY)
    ids = [*alive, *(one for one in unlisted if one[0].isdigit())]
    cancels = [" ".join(["scancel" if cluster == "slurm" else "kill", *sorted(ids)])] * bool(ids)
    cancels += [f"scancel --name={one}" for one in sorted(unlisted.keys() - set(ids))]  # scancel takes one name
    cancel = ", ".join(f"`{command}`" for command in cancels)
    if alive:
        words, way = "are in the queue already (an earlier run submitted them", f"or cancel them first with {cancel}"
    else:
        seconds = math.ceil(max(one.batch.unlisted_for(now) for one in unlisted.values()))
        words = "may be in the queue (an earlier run has just submitted them, and squeue does not list them yet"
        way = f"or cancel them with {cancel}; or wait {seconds} seconds: what is not listed then counts as gone"
    return f"jobs that this run needs {words}; they make {told}): {back}; {way}"
