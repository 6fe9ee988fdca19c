"""What a job asks SLURM for: from the resources of its rule to the parameters of submitit."""

import shlex
from collections.abc import Mapping
from typing import Any

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
RUNTIME = 60  # minutes, where a rule says nothing


def parameters(resources: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """The parameters of submitit's executor for a job with these Snakemake resources.

    runtime (minutes), mem_mb or mem_mb_per_cpu (of which the latter wins), cpus_per_task (else the threads), gpus,
    gres (which wins over gpus), slurm_partition, slurm_account, qos, constraint, exclude, nodelist, and
    slurm_extra: more options of sbatch, as on its command line. Raises ValueError for options it cannot read.
    """
    found: dict[str, Any] = {
        "timeout_min": int(resources.get("runtime") or RUNTIME),
        "cpus_per_task": int(resources.get("cpus_per_task") or max(1, threads)),
    }
    if resources.get("gpus") and not resources.get("gres"):
        found["gpus_per_node"] = int(resources["gpus"])
    if resources.get("mem_mb_per_cpu"):
        found["slurm_mem_per_cpu"] = f"{int(resources['mem_mb_per_cpu'])}M"
    elif resources.get("mem_mb"):
        found["slurm_mem"] = f"{int(resources['mem_mb'])}M"
    for name, parameter in AS_THEY_ARE.items():
        if resources.get(name):
            found[parameter] = resources[name] if isinstance(resources[name], int) else str(resources[name])
    return found | {"slurm_additional_parameters": {"requeue": True, **extra(str(resources.get("slurm_extra") or ""))}}


def extra(options: str) -> dict[str, Any]:
    """The options of `slurm_extra`, such as "--exclusive --nice=10", by their long names."""
    found: dict[str, Any] = {}
    words = shlex.split(options)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ValueError(f"slurm_extra {options!r}: got {word!r}, expected long options such as --nice=10")
        if not equals and words and not words[0].startswith("--"):
            equals, value = "=", words.pop(0)
        found[name] = value if equals else True
    return found
