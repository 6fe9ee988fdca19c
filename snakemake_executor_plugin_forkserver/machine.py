"""What this machine has to share out among jobs. Imports neither Snakemake nor torch."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

VISIBLE = "CUDA_VISIBLE_DEVICES"
WHOLE = 1000  # a GPU, of which jobs may have thousandths
SHARE = "gpu_share"  # the resource of Snakemake that counts them
USED = 0.9  # of the memory, the rest of which is Snakemake's, the fork server's and the system's
GROUPS = Path("/sys/fs/cgroup")


def limits(arguments: Sequence[str]) -> list[str]:
    """Snakemake's `resources` for its command line: memory and GPUs of this machine, none where jobs run elsewhere."""
    words = " ".join(arguments)
    executor = re.search(r"(?:^| )(?:-e ?|--executor[ =])(\w+)", words)
    if executor and executor[1] not in ("forkserver", "local"):
        return []
    gpus = visible()
    return [f"mem_mb={int(USED * memory())}"] + [f"{SHARE}={WHOLE * len(gpus)}"] * bool(gpus)


def memory() -> int:
    """MB of memory that processes here may use: the machine's, or less where a container or a SLURM job has less."""
    return min([psutil.virtual_memory().total // 2**20, *_granted()])


def visible() -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    if (said := os.environ.get(VISIBLE)) is not None:
        return [one.strip() for one in said.split(",") if one.strip() not in ("", "-1", "NoDevFiles")]
    return [str(number) for number in range(len(_sizes()))]


def gpu_memory(names: Sequence[str]) -> int:
    """MB of memory that each of these GPUs has at least: that of the smallest here; 0 where it is not known.

    It is not known of parts of a GPU (MIG).
    """
    if any(name.startswith("MIG") for name in names):
        return 0
    return min(_sizes(), default=0)


def _sizes() -> list[int]:
    """MB of memory of each GPU that nvidia-smi lists, 0 where it does not say."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = [line.strip() for line in done.stdout.splitlines()]
    return [int(word) if word.isdigit() else 0 for word in words if word.isdigit() or word.startswith("[")]


def _granted() -> Iterator[int]:
    """The limits in MB of SLURM, and of the control groups of this process (version 2, and the container's of 1)."""
    if (given := os.environ.get("SLURM_MEM_PER_NODE", "")).isdigit() and int(given):
        yield int(given)
    files = [GROUPS / "memory/memory.limit_in_bytes"]
    own = Path("/proc/self/cgroup")
    for line in own.read_text().splitlines() if own.is_file() else []:
        if line.startswith("0::"):
            group = GROUPS / line.removeprefix("0::/")
            files += [folder / "memory.max" for folder in (group, *group.parents) if folder.is_relative_to(GROUPS)]
    for file in files:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            yield int(text) // 2**20
