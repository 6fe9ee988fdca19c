"""The tables of benchmarks/results, in markdown for the README: `python benchmarks/table.py`."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from machine import RESULTS, told, verdict

Figures = Mapping[str, Any]


def main() -> None:
    """Prints a table for every result there is, and what it was measured on."""
    for name, rows in TABLES:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            figures = json.loads(path.read_text(encoding="utf-8"))
            where = figures["machine"]
            print(f"{rows.__doc__} ({where['processor']}, {where['cores']} cores, torch {where['torch']})\n")
            print(figures.get("skipped") or "\n".join(f"| {' | '.join(row)} |" for row in rows(figures)), end="\n\n")


def merging(figures: Figures) -> Iterable[list[str]]:
    """Merging models of 88M parameters in float32, disk to disk, in units of `cat` of the inputs and `cp` of one"""
    found = {(row["method"], row["tasks"]): row for row in figures["methods"]}
    counts = sorted({tasks for _, tasks in found})
    yield from head("method", *(f"{what}, T = {t}" for t in counts for what in ("units", "GB")))
    for method in dict.fromkeys(method for method, _ in found):
        each = [found.get((method, t)) for t in counts]
        cells = [measured(row) if row else ["–", "–"] for row in each]
        yield [method, *(cell for pair in cells for cell in pair)]


def plain(figures: Figures) -> Iterable[list[str]]:
    """Against the plain formulation, T = 8"""
    yield from head("method", "plain, s", "plain, GB", "times faster")
    for row in figures["plain"]:
        memory = f"{row['plain_gigabytes']:.1f}"
        yield [row["method"], f"{row['plain_seconds']:.1f}", memory, verdict(row["faster"])]


def concrete(figures: Figures) -> Iterable[list[str]]:
    """A Concrete meta-step against the plain formulation, without the model"""
    yield from head("kind", "T", "s", "plain, s", "times faster", "of its extra memory")
    for row in figures["steps"]:
        seconds = [f"{row[name]:.2f}" for name in ("seconds", "plain_seconds")]
        yield [
            row["kind"].replace("_", " "),
            str(row["tasks"]),
            *seconds,
            verdict(row["faster"]),
            verdict(row["memory"]),
        ]


def linearized(figures: Figures) -> Iterable[list[str]]:
    """A training step of L-LoRA"""
    yield from head("ratio", "value")
    yield ["L-LoRA over LoRA", verdict(figures["l_lora_over_lora"])]
    yield ["forward mode over L-LoRA, adapters on every linear layer", verdict(figures["jvp_over_l_lora"])]
    yield ["forward mode over L-LoRA, on query and value", f"{figures['jvp_over_l_lora_query_value']:.2f}"]


def large(figures: Figures) -> Iterable[list[str]]:
    """Three sharded bf16 models of 1.5 billion parameters, by `fusion merge`"""
    yield from head("method", "s", "GB, anonymous")
    for row in figures["merges"]:
        yield [row["method"], f"{row['seconds']:.0f}", verdict(row["gigabytes"])]


def images(figures: Figures) -> Iterable[list[str]]:
    """Pictures a second of evaluation, CLIP ViT-B/32 at 224 pixels"""
    yield from head(f"on {figures['device']}", "pictures/s", "of a bare loop's", "by processor time")
    for row in figures["models"]:
        speed, spent = f"{row['pictures_a_second']:.1f}", f"{row['of_bare_processor_time']:.2f}"
        yield [f"{row['model']} model", speed, verdict(row["of_bare"]), spent]


def pixels(figures: Figures) -> Iterable[list[str]]:
    """A pass over prepared pictures against one that decodes them, CLIP ViT-B/32 at 224 pixels"""
    yield from head(f"on {figures['device']}", "pictures/s", "decoding", "times faster")
    for row in figures["passes"]:
        speeds = [f"{row[name]:.1f}" for name in ("pictures_a_second", "decoding_pictures_a_second")]
        yield [row["what"], *speeds, verdict(row["faster"])]


def slurm(figures: Figures) -> Iterable[list[str]]:
    """The submitit executor on a SLURM of this one machine"""
    yield from head("what", "value")
    yield ["20 jobs without work, s", f"{figures['seconds_20']:.1f}"]
    if "faster" in figures:
        yield ["snakemake-executor-plugin-slurm, s", f"{figures['stock_seconds_20']:.1f}"]
        yield ["times as long", verdict(figures["faster"])]
    yield ["300 jobs, s each", verdict(figures["seconds_a_job_of_300"])]
    yield ["of a core with 1,000 jobs in the queue", verdict(figures["core_at_1000"])]
    yield ["queries of the scheduler a poll", f"{figures['queries_a_poll']:.2f}"]


def gpu(figures: Figures) -> Iterable[list[str]]:
    """On a GPU, at CLIP ViT-B/32's size; of the agreement with the CPU, the variant that agrees least"""
    yield from head(f"on {figures['card']}", "figure", "value")
    for section, rows in figures["sections"].items():
        measured = [row for row in rows if "error" not in row and "skipped" not in row]
        if section == "agreement":
            measured = sorted(measured, key=lambda row: row["relative difference"]["value"])[-1:]
        for row in measured:
            for name, figure in row.items():
                if isinstance(figure, dict):
                    yield [row["work"], name, told(figure)]


def head(*names: str) -> list[list[str]]:
    """The first two lines of a table; all columns but the first are numbers."""
    return [list(names), ["---", *["--:"] * (len(names) - 1)]]


def measured(row: Figures) -> list[str]:
    """Units and gigabytes of a merge, or the reason why there are none."""
    if "skipped" in row:
        return [row["skipped"].partition(":")[0], "–"]
    memory = row["gigabytes"]
    most = f"{memory['value']:.2f}" if memory["met"] else verdict(memory)
    return [("≈ " if row["estimated"] else "") + verdict(row["units"]), most]


TABLES: list[tuple[str, Callable[[Figures], Iterable[list[str]]]]] = [  # of which file, and how
    ("merging", merging), ("merging", plain), ("concrete", concrete), ("linearized", linearized), ("large", large),
    ("images", images), ("pixels", pixels), ("slurm", slurm), ("gpu", gpu),
]  # fmt: skip


if __name__ == "__main__":
    main()
