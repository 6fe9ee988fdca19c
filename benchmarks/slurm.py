"""The submitit executor on a SLURM of one machine: `python benchmarks/slurm.py`.

The seconds that 20 jobs without work take from the start of Snakemake to its end, beside those of
snakemake-executor-plugin-slurm where it is installed, at its fastest setting; of 300 jobs; and what the main process
uses while 1,000 jobs are in the queue. Skipped, with the reason, where no SLURM can be started.
"""

import importlib.util
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from machine import bound, verdict, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cluster import Sandbox
from mini_slurm import NoSlurm, Slurm
from waiting import wait_for

STOCK = [  # snakemake-executor-plugin-slurm, told to look every second
    "--executor", "slurm", "--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1",
    "--slurm-status-command", "squeue", "--slurm-no-account", "--slurm-array-jobs", "all",
]  # fmt: skip
FASTER, SECONDS_A_JOB, SHARE = 7.0, 0.25, 0.05  # than the stock executor; of 300 jobs; of a core at 1,000 jobs
POLL = 5  # seconds, in the last part
WATCHED = 60  # seconds


def main() -> None:
    """Measures, prints a line a figure and writes results/slurm.json."""
    with tempfile.TemporaryDirectory() as name:
        slurm = Slurm(Path(name) / "slurm", max_array=2001)
        try:
            slurm.start()
        except NoSlurm as reason:
            return write("slurm", {"skipped": str(reason)})
        try:
            write("slurm", measure(Path(name), slurm))
        finally:
            slurm.stop()


def measure(folder: Path, slurm: Slurm) -> dict[str, Any]:
    """All figures."""
    ours = [no_ops(folder / f"ours{i}", 20) for i in range(3)]
    seconds = statistics.median(ours)
    print(f"20 jobs: {seconds:.1f} s ({', '.join(f'{one:.1f}' for one in ours)})", flush=True)
    figures: dict[str, Any] = {"seconds_20": seconds, "runs_20": ours}
    if importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        with default_place(slurm.folder / "etc/slurm.conf"):  # its jobs are started without SLURM_CONF
            stock = no_ops(folder / "stock", 20, STOCK)
        figures |= {"stock_seconds_20": stock, "faster": bound(stock / seconds, at_least=FASTER)}
        print(f"snakemake-executor-plugin-slurm: {stock:.1f} s, {verdict(figures['faster'])} times as long", flush=True)
    many = no_ops(folder / "many", 300)
    figures["seconds_a_job_of_300"] = bound(many / 300, at_most=SECONDS_A_JOB)
    print(f"300 jobs: {many:.0f} s, {verdict(figures['seconds_a_job_of_300'])} s each", flush=True)
    figures |= idle(folder / "idle", slurm)
    queries = f"{figures['queries_a_poll']:.2f} queries a poll"
    print(f"1,000 jobs in the queue: {verdict(figures['core_at_1000'])} of a core, {queries}")
    return figures


@contextmanager
def default_place(conf: Path) -> Iterator[None]:
    """SLURM's configuration where its programs look for it by themselves; one that is there already stays."""
    place = Path("/etc/slurm/slurm.conf")
    if place.exists():
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(conf)
    try:
        yield
    finally:
        place.unlink()


def no_ops(folder: Path, jobs: int, executor: list[str] | None = None) -> float:
    """Seconds from the start of Snakemake to its end, for so many jobs that write a file."""
    folder.mkdir()
    sandbox = Sandbox(folder)
    sandbox.rule("facts", jobs=jobs, resources="runtime=5, mem_mb=100")
    options = ["--max-jobs-per-timespan", "1000/1s", "--quiet", "all"]
    began = time.monotonic()
    code, output = sandbox.run(*options, *(executor or ["--submitit-poll", "1"]))
    assert code == 0, output
    return time.monotonic() - began


def idle(folder: Path, slurm: Slurm) -> dict[str, Any]:
    """The share of a core that the main process uses while 1,000 jobs wait or run, and its queries of the scheduler."""
    folder.mkdir()
    sandbox = Sandbox(folder)
    sandbox.rule("facts", jobs=1000, resources="runtime=60, mem_mb=900", seconds=3000)
    calls = _count_calls(folder, "squeue")
    path = f"{folder}:{os.environ['PATH']}"
    options = ["--jobs", "1000", "--max-jobs-per-timespan", "2000/1s", "--quiet", "all", "--submitit-poll", str(POLL)]
    before, os.environ["PATH"] = os.environ["PATH"], path
    try:
        running = sandbox.start(*options)
    finally:
        os.environ["PATH"] = before
    try:
        wait_for(lambda: len(slurm.jobs()) >= 1000, "1,000 jobs in the queue", by=running)
        time.sleep(20)
        main, first = psutil.Process(running.pid), len(calls.read_text())
        spent, began = sum(main.cpu_times()[:4]), time.monotonic()
        time.sleep(WATCHED)
        share = (sum(main.cpu_times()[:4]) - spent) / (time.monotonic() - began)  # of it and of what it called
        queries = len(calls.read_text()) - first
    finally:
        running.send_signal(2)
        running.finish()
    return {"core_at_1000": bound(share, at_most=SHARE), "queries_a_poll": queries / (WATCHED / POLL)}


def _count_calls(folder: Path, program: str) -> Path:
    """A file that grows by a byte whenever the program, found in the folder first, is called."""
    calls, real = folder / f"{program}.calls", shutil.which(program)
    calls.touch()
    shim = folder / program
    shim.write_text(f'#!/bin/sh\nprintf x >> {calls}\nexec {real} "$@"\n')
    shim.chmod(0o755)
    return calls


if __name__ == "__main__":
    main()
