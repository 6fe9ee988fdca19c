"""What a scheduler was asked for a job, beside what the job used of it."""

import os
import resource
import time

import psutil

from fusion.job import MINUTES, QUEUED

ALLOCATION = ("asked_mb", "used_mb", "asked_minutes", "used_minutes")


def allocation() -> dict[str, float]:
    """What the scheduler was asked for this job, and what its process has used of it so far, as far as it is known.

    asked_mb, used_mb: memory of the host, not of the GPU. asked_minutes, used_minutes: of jobs that share an
    allocation, the last one says what all have used. Empty where nothing was submitted.
    """
    if QUEUED not in os.environ:
        return {}
    given = {name: int(value) for name, value in os.environ.items() if name.startswith("SLURM_") and value.isdigit()}
    found = {
        "used_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "used_minutes": (time.time() - psutil.Process().create_time()) / 60,
    }
    of_cores = given.get("SLURM_MEM_PER_CPU", 0) * given.get("SLURM_CPUS_ON_NODE", 0)
    if memory := given.get("SLURM_MEM_PER_NODE", 0) or of_cores:
        found["asked_mb"] = float(memory)
    if MINUTES in os.environ:
        found["asked_minutes"] = float(os.environ[MINUTES])
    return found
