"""300 short jobs through a sick SLURM: `python benchmarks/soak.py`; 20 minutes or so.

squeue fails one time in ten, sbatch says one time in twenty that it timed out after it has submitted, the node is
drained and resumed, and Snakemake is killed and started again every 20 seconds. Prints how many outputs are missing at
the end, how many jobs ran twice at the same time, whether anything hung, and how many runs of Snakemake failed; writes
results/soak.json.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from machine import bound, verdict, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cluster import Sandbox
from mini_slurm import HOST, NoSlurm, Slurm

JOBS, SECONDS = 300, 3  # how many, and how long each one takes
LIFE = 20  # seconds after which Snakemake is killed
LIMIT = 3600  # seconds after which the run counts as hung
# $$ is the number of the process: as good as chance
SQUEUE = 'test $(($$ % 10)) = 3 && { echo "slurm_load_jobs error: Socket timed out on send/recv" >&2; exit 1; }'
SBATCH = """if test $(($$ % 20)) = 3; then
  "$real" "$@" > /dev/null
  echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1
fi"""


def main() -> None:
    """Runs the soak on a SLURM of its own."""
    with tempfile.TemporaryDirectory() as name:
        slurm = Slurm(Path(name) / "slurm")
        try:
            slurm.start()
        except NoSlurm as reason:
            return write("soak", {"skipped": str(reason)})
        try:
            write("soak", soak(Path(name) / "run"))
        finally:
            slurm.stop()


def soak(folder: Path) -> dict[str, Any]:
    """The figures."""
    folder.mkdir()
    sandbox = Sandbox(folder)
    sandbox.rule("alone", jobs=JOBS, resources="runtime=5, mem_mb=100", seconds=SECONDS)
    sandbox.wrap("squeue", SQUEUE)
    sandbox.wrap("sbatch", SBATCH)
    over, failed = Event(), 0
    drainer = Thread(target=drain, args=(over,))
    drainer.start()
    began, kills, code = time.monotonic(), 0, None
    try:
        while code != 0 and time.monotonic() - began < LIMIT:
            # few at a time, so that sbatch is called often
            running = sandbox.start("--jobs", "40", "--max-jobs-per-timespan", "1000/1s", "--latency-wait", "2")
            with suppress(subprocess.TimeoutExpired):
                running.wait(LIFE)
            code = running.poll()
            if code is None:
                kills += 1
                running.end()
            elif code != 0:
                failed += 1
                print(running.output[-3000:], flush=True)
    finally:
        over.set()
        drainer.join()
    return figures(folder, time.monotonic() - began, kills, failed, hung=code != 0)


def figures(folder: Path, seconds: float, kills: int, failed: int, hung: bool) -> dict[str, Any]:
    """What came out, and what was done to it."""
    runs = [file.read_text().split() for file in (folder / "alone").glob("*.runs")]
    calls = {program: len((folder / f"{program}.calls").read_text().splitlines()) for program in ("squeue", "sbatch")}
    lost = sum(not (folder / f"alone/{i}").exists() for i in range(JOBS))
    starts = Counter(map(len, runs))
    found: dict[str, Any] = {
        "lost": bound(lost, at_most=0),
        "twice": bound(sum(words.count("twice") for words in runs), at_most=0),
        "hung": bound(int(hung), at_most=0),
        "failed": bound(failed, at_most=0),
        "seconds": seconds, "kills": kills, "calls": calls, "jobs_by_starts": dict(sorted(starts.items())),
    }  # fmt: skip
    told = ", ".join(f"{name} {verdict(found[name])}" for name in ("lost", "twice", "hung", "failed"))
    print(f"{JOBS} jobs in {seconds:.0f} s, Snakemake killed {kills} times, {calls}: {told}; starts {dict(starts)}")
    return found


def drain(over: Event) -> None:
    """Drains the node and resumes it, again and again."""
    while not over.wait(15):
        for state in ("DRAIN", "RESUME"):
            command = ["scontrol", "update", f"NodeName={HOST}", f"State={state}", "Reason=soak"]
            subprocess.run(command, check=False, capture_output=True, env=dict(os.environ))
            over.wait(5)


if __name__ == "__main__":
    main()
