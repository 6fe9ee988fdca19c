"""Every method that needs no data, disk to disk, on random models of CLIP ViT-B/32's size:
`python benchmarks/merging.py`.

The unit is the time in which `cat` reads the pre-trained and the fine-tuned files and `cp` writes one, in the same
run; where there is a target, measured anew beside every merge, for it varies with what else the machine does. Each
merge runs in a process of its own with the imports done, loops compiled and the files in the page cache; of one
model a task it makes the first. What takes longer than `--limit` seconds is stopped between two tensors, and its
time estimated from the parameters merged until then.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, PeakMemory, bound, in_subprocess, verdict, write
from models import make, open_models
from plain import PLAIN, Tensors
from torch import Generator

from fusion.checkpoint import save, shape
from fusion.methods import merge
from fusion.pipelines import algorithms, kind, method_class
from fusion.vectors import NotApplicable, TaskVectors

UNITS = {"task_arithmetic": 3.0, "simple_average": 3.0, "ties": 8.0, "dare + task_arithmetic": 6.0}  # T = 8, at most
GIGABYTES = 1.0  # of anonymous memory, at most, for T = 8 and T = 20
FASTER = {"ties": 5.0, "tsv_m": 3.0, "iso_c": 3.0}  # than the plain formulation at T = 8, at least
OTHER: dict[str, tuple[str, dict[str, Any]]] = {  # rows beside those of the defaults
    "wudi, closed form": ("wudi", {"solver": "closed_form"}),
    "wudi, 3 of 300 steps": ("wudi", {"steps": 3}),  # for the memory of a whole merge: a step more takes none
    "doge, 4 of 400 steps": ("doge", {"steps": 4}),  # the same
    "knots, by layer": ("knots", {"scope": "layer"}),  # by default it aligns all matrices before it merges the first
}
PATIENCE = {  # seconds instead of the limit, for what merges nothing in so long, and for what is to merge all
    "pcb": 200.0,
    "doge": 100.0,
    "doge, 4 of 400 steps": 200.0,
    "wudi, 3 of 300 steps": 200.0,
}
TASKS = (8, 20)
SHARE = 0.1  # of the parameters, merged at least before a merge is stopped
QUICK, REPEATS = 10.0, 4  # seconds: what takes less is measured so many more times


def main() -> None:
    """Measures, prints a line a method and writes results/merging.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=20, help="seconds after which a merge is stopped")
    parser.add_argument("--only", nargs="+", default=None, help="methods, as in 'dare + task_arithmetic'")
    parser.add_argument("--tasks", nargs="+", type=int, default=TASKS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, max(options.tasks))
        units = {tasks: statistics.median(unit(folder, tasks) for _ in range(5)) for tasks in options.tasks}
        print("units:", ", ".join(f"{seconds:.2f} s at T = {tasks}" for tasks, seconds in units.items()))
        names = options.only or [*pipelines(), *OTHER]
        rows = [measured(folder, name, t, units[t], options.limit) for name in names for t in units]
        ours = {row["method"]: row["seconds"] for row in rows if row["tasks"] == 8 and "seconds" in row}
        plain = [baseline(folder, p, ours[p], options.limit) for p in FASTER if p in ours]
    if options.only:  # in the place of the rows that the file has of these methods
        before = json.loads((RESULTS / "merging.json").read_text(encoding="utf-8"))
        rows = replaced(before["methods"], rows)
        plain = replaced(before["plain"], plain)
    write("merging", {"unit_seconds": units, "methods": rows, "plain": plain})


def replaced(before: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows before, with those of the same method and number of tasks in the place of older ones."""
    new = {(row["method"], row["tasks"]): row for row in rows}
    kept = [new.pop((row["method"], row["tasks"]), row) for row in before]
    return [*kept, *new.values()]


def pipelines() -> list[str]:
    """Every algorithm without data: a transform is followed by a sum, an adjustment preceded by one."""
    whole = {"transform": "{} + task_arithmetic", "adjust": "task_arithmetic + {}", "merge": "{}"}
    found = [whole[kind(name)].format(name) for name in algorithms()]
    return [pipeline for pipeline in found if method_class(pipeline) in ("data-free", "multi-model")]


def measured(folder: Path, name: str, tasks: int, unit_seconds: float, limit: float) -> dict[str, Any]:
    """One row: seconds, units and peak anonymous memory beside their targets, or why there are none.

    name: a pipeline, or a row of OTHER.
    """
    row: dict[str, Any] = {"method": name, "tasks": tasks}
    limit = max(limit, PATIENCE.get(name, 0))
    try:
        runs: list[dict[str, Any]] = [in_subprocess(time_merge, folder, name, tasks, limit, seconds=60 + 2 * limit)]
        beside = [unit_seconds]
        if "seconds" in runs[0] and runs[0]["seconds"] < QUICK:
            for _ in range(REPEATS):
                runs.append(in_subprocess(time_merge, folder, name, tasks, limit))
                beside.append(unit(folder, tasks) if name in UNITS else unit_seconds)
    except multiprocessing.TimeoutError:
        runs = [{"skipped": f"merged nothing in {60 + 2 * limit:.0f} s"}]
    if "skipped" in runs[0]:
        print(f"{name:40} T = {tasks:2}: {runs[0]['skipped']}", flush=True)
        return row | runs[0]
    seconds = statistics.median(run["seconds"] for run in runs)
    ratio = statistics.median(run["seconds"] / one for run, one in zip(runs, beside, strict=True))
    units = bound(ratio, at_most=UNITS.get(name) if tasks == 8 else None)
    memory = bound(max(run["bytes"] for run in runs) / 1e9, at_most=GIGABYTES)
    about = "about " if runs[0]["estimated"] else ""
    text = f"{about}{seconds:.2f} s, {about}{verdict(units)} units, {verdict(memory)} GB"
    print(f"{name:40} T = {tasks:2}: {text}", flush=True)
    return row | {"seconds": seconds, "estimated": runs[0]["estimated"], "units": units, "gigabytes": memory}


def baseline(folder: Path, pipeline: str, ours: float, limit: float) -> dict[str, Any]:
    """The plain formulation at T = 8, and how many times faster the method is; measured once."""
    run = in_subprocess(time_plainly, folder, pipeline, 8, limit)
    faster = bound(run["seconds"] / ours, at_least=FASTER[pipeline])
    about = "about " if run["estimated"] else ""
    print(f"plain {pipeline}: {about}{run['seconds']:.1f} s; {verdict(faster)} times as long", flush=True)
    figures = {"plain_seconds": run["seconds"], "plain_gigabytes": run["bytes"] / 1e9, "estimated": run["estimated"]}
    return {"method": pipeline, "tasks": 8, **figures, "faster": faster}


def compile_loops(pipeline: str) -> None:
    """What is compiled at the first merge of a process, or read from the disk, is so now."""
    models = [{"w": torch.randn(4, 4)} for _ in range(3)]
    with suppress(NotApplicable):
        merge(pipeline, TaskVectors(models[0], models[1:]), rng=Generator()).for_task(0).tensors()


def time_merge(folder: Path, name: str, tasks: int, limit: float) -> dict[str, Any]:
    """Seconds and peak anonymous bytes of one merge; or 'skipped', the reason why the method does not apply."""
    pipeline, settings = OTHER.get(name, (name, {}))
    compile_loops(pipeline)
    os.sync()
    with PeakMemory() as memory:
        began = time.perf_counter()
        vectors = open_models(folder, tasks)
        try:
            merged = merge(pipeline, vectors, rng=Generator().manual_seed(0), values=settings).for_task(0)
            found = timed_save(folder, vectors, merged.layers(), began, limit)
        except NotApplicable as reason:
            return {"skipped": f"not applicable: {reason}"}
    return found | {"bytes": memory.peak}


def time_plainly(folder: Path, pipeline: str, tasks: int, limit: float) -> dict[str, Any]:
    """The same of the plain formulation."""
    with PeakMemory() as memory:
        began = time.perf_counter()
        vectors = open_models(folder, tasks)
        found = timed_save(folder, vectors, PLAIN[pipeline](vectors), began, limit)
    return found | {"bytes": memory.peak}


def timed_save(folder: Path, vectors: TaskVectors, tensors: Tensors, began: float, limit: float) -> dict[str, Any]:
    """Seconds from `began` to the written file, or what they would be if stopped at the limit."""
    layout = {name: (torch.float32, shape(vectors.pretrained, name)) for name in vectors.pretrained}
    total, passed = vectors.count(), [(0, began)]  # parameters merged, and when

    def until_limit() -> Tensors:
        for name, tensor in tensors:
            passed.append((passed[-1][0] + tensor.numel(), time.perf_counter()))
            yield name, tensor
            done, now = passed[-1]
            if now - began > limit and SHARE * total < done < total:
                raise TimeoutError

    out = folder / "merged.safetensors"
    try:
        save(out, layout, until_limit())
    except TimeoutError:
        (first, start), (last, now) = passed[1], passed[-1]  # what comes before the first tensor is not repeated
        return {"seconds": now - began + (now - start) * (total - last) / (last - first), "estimated": True}
    seconds = time.perf_counter() - began
    out.unlink()  # the next one is written anew, as the copy of `unit` is: freeing a file's pages takes time too
    return {"seconds": seconds, "estimated": False}


def unit(folder: Path, tasks: int) -> float:
    """Seconds in which `cat` reads the files and `cp` writes one, the pages of all being in memory."""
    files = [folder / "pretrained.safetensors", *(folder / f"{t}.safetensors" for t in range(tasks))]
    os.sync()  # nothing that was written before is still on its way to the disk
    began = time.perf_counter()
    with open("/dev/null", "wb") as nowhere:
        subprocess.run(["cat", *files], stdout=nowhere, check=True)
    subprocess.run(["cp", files[0], folder / "copy"], check=True)
    found = time.perf_counter() - began
    (folder / "copy").unlink()
    return found


if __name__ == "__main__":
    main()
