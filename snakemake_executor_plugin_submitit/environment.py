"""The environment of SLURM's programs: what the user's own calls of them are told by it is not for the executor."""

import os

OF_SLURM = ("SBATCH_", "SRUN_", "SQUEUE_", "SCONTROL_", "SCANCEL_", "SINFO_", "SLURM_")
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # where SLURM is, and who asks
OF_JOB = ("SLURM_", "SRUN_DEBUG")  # set by SLURM where Snakemake runs in a job, and by hardly anyone else
CLUSTERS = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")
INSTEAD = {
    "SBATCH_PARTITION": "slurm_partition",
    "SBATCH_ACCOUNT": "slurm_account",
    "SBATCH_QOS": "qos",
    "SBATCH_TIMELIMIT": "runtime",
    "SBATCH_MEM_PER_NODE": "mem_mb",
    "SBATCH_MEM_PER_CPU": "mem_mb_per_cpu",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_GPUS": "gpus",
    "SBATCH_GPUS_PER_NODE": "gpus",
    "SBATCH_GRES": "gres",
    "SBATCH_EXPORT": "submitit-setup",
    "SBATCH_GET_USER_ENV": "submitit-setup",
    "SBATCH_SIGNAL": "submitit-signal-delay",
}


def environment() -> dict[str, str]:
    """This process's, without what would change how SLURM's programs understand their options.

    Where Snakemake runs in a SLURM job, that job's variables are not there either: they would reach the jobs that it
    submits.
    """
    return {name: value for name, value in os.environ.items() if not _is_dropped(name)}


def command(*words: str) -> list[str]:
    """A command line that runs a program in `environment()`, for what passes on its own environment."""
    dropped = [option for name in sorted(os.environ) if _is_dropped(name) for option in ("-u", name)]
    return ["env", *dropped, *words] if dropped else list(words)


def require_one_cluster() -> None:
    """ValueError where the environment sends jobs to other clusters."""
    for name in CLUSTERS:
        if os.environ.get(name):
            raise ValueError(
                f"{name}={os.environ[name]} is set, and Snakemake could not follow jobs on another cluster; "
                "run it on a login node of that cluster, and unset the variable"
            )


def dropped() -> str:
    """What of the user's environment does not count, and which settings do instead, in a line; empty if nothing."""
    said = []
    for name in sorted(os.environ):
        if _is_dropped(name) and not name.startswith(OF_JOB):
            option = name.removeprefix("SBATCH_").lower().replace("_", "-")
            other = f'slurm_extra: "--{option}=…"' if name.startswith("SBATCH_") else ""
            instead = INSTEAD.get(name, other)
            said.append(f"{name}={os.environ[name]}" + (f" (instead, set {instead})" if instead else ""))
    return f"of the environment, this does not count for Snakemake's jobs: {', '.join(said)}" if said else ""


def _is_dropped(name: str) -> bool:
    return name.startswith(OF_SLURM) and name not in KEPT
