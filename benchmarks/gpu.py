"""What a GPU takes for the work of the suite, at CLIP ViT-B/32's true size: `python benchmarks/gpu.py`.

Section after section, the most valuable first: agreement of every method with the CPU; steps of Concrete and
AdaMerging, merges, fine-tuning and evaluation, each in milliseconds and against a bare loop or the authors'
formulation in the same run; and the hours of Concrete's table that follow from them. Weights are random; nothing is
downloaded. results/gpu.json is written after every section, and what the seconds do not suffice for is named in it.

--tiny, the default where there is no GPU, rehearses every line at sizes whose figures mean nothing. What fails, be it
for a package that is missing, is written down where its figures would be, and the rest goes on.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, told, write_to
from on_gpu.measure import clear
from on_gpu.setup import Figures, Setup

from fusion.device import device, name_of, precision

SECTIONS = ("agreement", "adaptive", "merging", "matrices", "training", "evaluation", "projection")
SECONDS = 360.0


def main() -> None:
    """Measures, prints a line a figure and writes the file."""
    options = arguments()
    place, began = device(), time.monotonic()
    if place.type == "cpu":
        torch.set_num_threads(1)  # several wait for one another where the cores are busy
    setup = Setup(place, options.tiny, began + options.seconds)
    facts = {"device": place.type, "card": name_of(place), "precision": str(precision()), "cuda": torch.version.cuda}
    found: dict[str, Any] = {**facts, "is_tiny": options.tiny, "seconds": 0.0, "sections": {}}
    found["not_run"] = list(SECTIONS)
    print(f"on {facts['card']}, {'tiny' if options.tiny else 'true'} sizes, into {options.out}", flush=True)
    write_to(options.out, found)
    for name in SECTIONS:
        if setup.left <= 0:
            break
        found["sections"][name] = measured(setup, name)
        found["not_run"].remove(name)
        found["seconds"] = time.monotonic() - began
        write_to(options.out, found)
        clear(place)
    print("\n".join(summary(found)))


def arguments() -> argparse.Namespace:
    """The options; by default a rehearsal is written to a temporary file."""
    is_gpu = device().type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action=argparse.BooleanOptionalAction, default=not is_gpu)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which nothing more is begun")
    parser.add_argument("--out", type=Path, default=None, help="another file than results/gpu.json")
    options = parser.parse_args()
    is_figure = is_gpu and not options.tiny
    if options.out is None:
        options.out = RESULTS / "gpu.json" if is_figure else Path(tempfile.mkdtemp()) / "gpu.json"
    if not is_figure and options.out.resolve().is_relative_to(RESULTS):
        parser.error(
            f"got --out {options.out} for what is not measured at true sizes on a GPU; expected another folder"
        )
    return options


def measured(setup: Setup, section: str) -> list[dict[str, Any]]:
    """The section's rows."""
    print(f"{section}, {setup.left:.0f} s left", flush=True)
    rows = []
    for work, measure in begun(setup, section):
        row = {"work": work, **(tried(measure) if setup.left > 0 else {"skipped": "no time was left"})}
        setup.found[work] = row
        rows.append(row)
        print(f"  {work}: {shown(row)}", flush=True)
    return rows


def begun(setup: Setup, section: str) -> Iterable[tuple[str, Callable[[], Figures]]]:
    """What the section measures; where it cannot begin, one row that says why."""
    try:
        yield from import_module(f"on_gpu.{section}").rows(setup)
    except Exception as error:
        reason = said(error)
        yield section, lambda: {"error": reason}


def tried(measure: Callable[[], Figures]) -> Figures:
    """The figures, or why there are none."""
    try:
        return measure()
    except Exception as error:
        return {"error": said(error)}


def said(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def shown(row: Mapping[str, Any]) -> str:
    """The figures of a row in words."""
    texts = {name: told(value) if isinstance(value, dict) else str(value) for name, value in row.items()}
    return "; ".join(f"{name} {text}" for name, text in texts.items() if name != "work")


def summary(found: Mapping[str, Any]) -> Iterable[str]:
    """What did not come out as it should: goals missed, what failed, what there was no time for."""
    rows = [row for each in found["sections"].values() for row in each]
    missed = [row["work"] for row in rows if any(isinstance(one, dict) and not one["met"] for one in row.values())]
    yield f"{found['seconds']:.0f} s; goals missed: {'; '.join(missed) or 'none'}"
    yield f"failed: {'; '.join(row['work'] for row in rows if 'error' in row) or 'nothing'}"
    skipped = [row["work"] for row in rows if "skipped" in row]
    yield f"not run, for the time was over (--seconds): {'; '.join([*skipped, *found['not_run']]) or 'nothing'}"


if __name__ == "__main__":
    main()
