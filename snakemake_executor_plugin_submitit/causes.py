"""Why SLURM ended a job, from the lines that it wrote into the job's output, and what to ask for instead."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LINES, LENGTH = 5, 300  # of what is shown, and characters of each
END = 200_000  # bytes at the end of a file that are looked through
SAID = re.compile(r"(\[[\dT:.-]+\] )?((slurmstepd|slurmd|srun)[^:]*: )?(error|fatal): ")
# what ends a start of a job that starts again, and what follows from other lines
PASSING = re.compile(r"DUE TO (PREEMPTION|JOB REQUEUE)|step aborted|Terminated|Exited with exit code", re.IGNORECASE)
EXCEEDED = re.compile(r"exceeded memory limit \((\d+) > (\d+)\)")
MEMORY = re.compile(r"oom[-_ ]kill|out[- ]of[- ]memory|exceeded (job |step )?memory limit", re.IGNORECASE)
TIME = re.compile(r"DUE TO TIME LIMIT")
NODE = re.compile(r"DUE TO NODE FAILURE|node fail", re.IGNORECASE)
LAUNCH = re.compile(r"launch failed|Task launch .* failed|execve\(\)|Unable to (create|launch)", re.IGNORECASE)


def causes(streams: Iterable[Path], resources: Mapping[str, Any] | None = None) -> list[str]:
    """SLURM's own lines in the files, and what follows from them; none where SLURM has ended nothing.

    resources: what the job asked for, to say what it is now.
    """
    lines = [line for stream in streams for line in _last_lines(stream)]
    return read(lines, resources or {})


def read(lines: Iterable[str], resources: Mapping[str, Any]) -> list[str]:
    """The same of the lines of a file."""
    said = dict.fromkeys(line.strip() for line in lines if SAID.match(line) and not PASSING.search(line))
    found = list(said)[-LINES:]
    return [line[:LENGTH] for line in found] + _advice("\n".join(said), resources)


def _advice(said: str, resources: Mapping[str, Any]) -> list[str]:
    if MEMORY.search(said):
        name = "mem_mb_per_cpu" if resources.get("mem_mb_per_cpu") else "mem_mb"
        used = [f"it used {_mb(most)} MB and had {_mb(limit)} MB" for most, limit in EXCEEDED.findall(said)[-1:]]
        return ["; ".join([*used, f"raise {name}{_now(name, resources)}"])]
    if TIME.search(said):
        return [f"raise runtime{_now('runtime', resources)}, in minutes"]
    if NODE.search(said):
        return ["its node failed: run it again, and exclude the node if it fails there again"]
    if LAUNCH.search(said):
        return ["SLURM could not start it there: look at submitit-setup, submitit-python and the node"]
    return []


def _mb(size: str) -> int:
    return round(int(size) / 2**20)


def _now(name: str, resources: Mapping[str, Any]) -> str:
    return f" (now {resources[name]})" if resources.get(name) else ""


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - END))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
