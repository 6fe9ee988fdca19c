"""What a job asks SLURM for: from the resources of its rule to the parameters of submitit."""

import shlex
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from . import gpus

AS_THEY_ARE = {  # resources that are options of sbatch, under the names that submitit gives them
    "slurm_partition": "slurm_partition",
    "slurm_account": "slurm_account",
    "qos": "slurm_qos",
    "slurm_qos": "slurm_qos",
    "constraint": "slurm_constraint",
    "gres": "slurm_gres",
    "exclude": "slurm_exclude",
    "nodelist": "slurm_nodelist",
}
ADDED = ("reservation", "licenses")  # options of sbatch for which submitit has no name
ONE = ("nodes", "tasks")  # a job is one process on one node
READ = ("runtime", "mem_mb", "mem_mb_per_cpu", "cpus_per_task", "gpus", "gpu", "gpu_model", "slurm_extra", "bundle")
OF_ONE_MACHINE = ("gpu_mem_mb",)  # of the forkserver: a SLURM job has its GPUs for itself
KNOWN = (*READ, *AS_THEY_ARE, *ADDED, *ONE, *OF_ONE_MACHINE)
OF_SNAKEMAKE = ("mem", "mem_mib", "disk", "disk_mb", "disk_mib", "tmpdir", "attempt")  # and all that begin with _
CLUSTERS = "Snakemake could not follow jobs on another cluster: run it on a login node of that cluster"
REFUSED = {
    "clusters": CLUSTERS,
    "cluster": CLUSTERS,
    "gpu_manufacturer": "SLURM knows types of GPUs, not makers: set gpu_model",
    "mpi": "a job is one process",
}
# options of sbatch that slurm_extra must not set, by the setting that does; empty where the executor needs its own
OPTIONS = {
    "clusters": CLUSTERS,
    "gres": "set the resource gres, so that the job's GPUs are counted",
    "gpus": "set the resource gpus, so that they are counted",
    "gpus-per-node": "set the resource gpus, so that they are counted",
    "gpus-per-task": "set the resource gpus, so that they are counted",
    "cpus-per-task": "set the resource cpus_per_task",
    "time": "set the resource runtime",
    "nodes": "a job is one process on one node",
    "ntasks": "a job is one process on one node",
    "ntasks-per-node": "a job is one process on one node",
    **dict.fromkeys(("array", "job-name", "output", "error", "signal", "wrap", "test-only", "parsable"), ""),
}
# what users of other tools write, where the nearest name would be another one
MEANT = {"cpus": "cpus_per_task", "cores": "cpus_per_task", "ntasks": "tasks", "time": "runtime", "mem_gb": "mem_mb"}
RUNTIME = 60  # minutes, where a rule says nothing


def parameters(resources: Mapping[str, Any], threads: int, limited: Collection[str] = ()) -> dict[str, Any]:
    """The parameters of submitit's executor for a job with these Snakemake resources.

    runtime (minutes), mem_mb or mem_mb_per_cpu (of which the latter wins), cpus_per_task (else the threads), gpus or
    gpu ("a100:2" is two of a type), gres (which wins over gpus), slurm_partition, slurm_account, qos, constraint,
    exclude, nodelist, reservation, licenses, and slurm_extra: more options of sbatch, as on its command line.
    `gpus_per_node` is always the number of GPUs. `limited` holds the resources that the user limits by `--resources`.
    Raises ValueError for what it cannot read or does not know.
    """
    require_known(resources, limited)
    for name in ONE:
        if str(resources.get(name) or 1) != "1":
            raise ValueError(f"{name}: got {resources[name]}, expected 1: a job is one process on one node")
    found: dict[str, Any] = {
        "timeout_min": int(resources.get("runtime") or RUNTIME),
        "cpus_per_task": int(resources.get("cpus_per_task") or max(1, threads)),
    }
    added: dict[str, Any] = {name: str(resources[name]) for name in ADDED if resources.get(name)}
    if number := gpus.count(resources):
        found["gpus_per_node"] = number
    if not (typed := gpus.asked(resources)).isdigit() and typed:
        added["gpus_per_node"] = typed  # takes the place of the number
    if resources.get("mem_mb_per_cpu"):
        found["slurm_mem_per_cpu"] = f"{int(resources['mem_mb_per_cpu'])}M"
    elif resources.get("mem_mb"):
        found["slurm_mem"] = f"{int(resources['mem_mb'])}M"
    for name, parameter in AS_THEY_ARE.items():
        if resources.get(name):
            found[parameter] = resources[name] if isinstance(resources[name], int) else str(resources[name])
    options = extra(str(resources.get("slurm_extra") or ""))
    requeue = {} if "no-requeue" in options else {"requeue": True}
    return found | {"slurm_additional_parameters": {**requeue, **added, **options}}


def require_known(names: Collection[str], limited: Collection[str] = ()) -> None:
    """ValueError for the first resource that would be ignored, with the nearest that is known."""
    for name in names:
        if name in KNOWN or name in OF_SNAKEMAKE or name in limited or name.startswith("_"):
            continue
        if name in REFUSED:
            raise ValueError(f"the resource {name!r} cannot be used: {REFUSED[name]}")
        near = [MEANT[name]] if name in MEANT else get_close_matches(name, KNOWN, n=1, cutoff=0)
        raise ValueError(
            f"unknown resource {name!r}; did you mean {near[0]!r}? Expected one of {', '.join(KNOWN)}, in the rule or "
            f"in profiles/slurm; a resource that only limits jobs of Snakemake is made known by --resources {name}=N"
        )


def extra(options: str) -> dict[str, Any]:
    """The options of `slurm_extra`, such as "--exclusive --nice=10", by their long names."""
    found: dict[str, Any] = {}
    words = shlex.split(options)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("-M"):
            raise ValueError(f"slurm_extra {options!r}: {word} cannot be used: {CLUSTERS}")
        if not word.startswith("--") or not name:
            raise ValueError(f"slurm_extra {options!r}: got {word!r}, expected long options such as --nice=10")
        for option, instead in OPTIONS.items():
            if option == name or (len(name) > 3 and option.startswith(name)):  # sbatch takes beginnings, too
                why = instead or "the executor sets it itself"
                raise ValueError(f"slurm_extra {options!r}: --{name} cannot be used: {why}")
        if not equals and words and not words[0].startswith("-"):
            equals, value = "=", words.pop(0)
        found[name] = value if equals else True
    return found
