"""What a job finds on the node where it runs: enough to see that a cluster is set up as the suite needs it."""

import math
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fusion.artifacts import new_file, read_json, write_json
from fusion.device import device, precision
from fusion.job import Job, progress

SIZES = {"cuda": 8192, "cpu": 1024}  # rows of the matrices that are multiplied
FILES = 20  # small files that are written


def check_node(job: Job) -> None:
    """Writes the facts of this node as text by name."""
    place = device()
    scheduler = {name: os.environ.get(f"SLURM_{name}", "none") for name in ("JOB_ID", "JOB_PARTITION")}
    facts = {
        "host": socket.gethostname(),
        "SLURM job": f"{scheduler['JOB_ID']} (partition {scheduler['JOB_PARTITION']}, {os.cpu_count()} cores here)",
        "torch": f"{torch.__version__} (built for CUDA {torch.version.cuda or 'none'})",
        "driver": _driver(),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else f"CPU ({job.threads} threads)",
        "precision": str(precision()).removeprefix("torch."),
        "matrix product": _product(place),
        "results' file system": f"a small file is written, synced and read in {_latency(job):.1f} ms",
    }
    write_json(job.output["facts"], facts)


def show(job: Job) -> None:
    """Prints the facts on the terminal."""
    facts: dict[str, Any] = read_json(job.input["facts"])
    for name, fact in facts.items():
        progress(f"{name}: {fact}")


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi here"
    command = ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return "; ".join((said.stdout or said.stderr).split("\n")).strip("; ")


def _product(place: torch.device) -> str:
    """How fast a product of two square matrices in the precision of models is, the median of five."""
    size, kind = SIZES[place.type], precision()
    left, right = (torch.randn(size, size, device=place, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        total = (left @ right).sum().item()  # which waits for the device
        seconds.append(time.perf_counter() - began)
        if not math.isfinite(total):
            raise RuntimeError(f"the product of two matrices on {place} has the sum {total}, expected a finite number")
    return f"{size} × {size} in {kind} at {2 * size**3 / median(seconds) / 1e12:.2f} TFLOP/s"


def _latency(job: Job) -> float:
    """Milliseconds that one of several small files takes beside the results, the median."""
    seconds = []
    for index in range(FILES):
        path = Path(f"{job.output['facts']}.{index}")
        began = time.perf_counter()
        with new_file(path) as file, file.open("wb") as stream:
            stream.write(b"x" * 4096)
            os.fsync(stream.fileno())
        path.read_bytes()
        seconds.append(time.perf_counter() - began)
        path.unlink()
    return 1000 * median(seconds)
