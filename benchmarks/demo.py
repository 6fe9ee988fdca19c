"""How long the demo takes and where the time goes: `python benchmarks/demo.py`, from `make bench`.

Runs the whole workflow into an empty folder, data included, and reads Snakemake's benchmark files. What is not
inside a job is start-up, imports, scheduling, and a core that has nothing to do.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from machine import machine

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measures, prints a table and writes results/demo.json."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        subprocess.run([Path(sys.executable).parent / "snakemake", "--config", f"results={folder}"], check=True)
        wall = time.monotonic() - began
        jobs = read_jobs(Path(folder))
    facts = machine()
    available = wall * int(facts["cores"])
    stages = jobs.groupby("rule")["s"].agg(jobs="count", seconds="sum").sort_values("seconds", ascending=False)
    stages["share"] = stages["seconds"] / available
    outside = 1 - stages["share"].sum()
    print(stages.to_string(formatters={"seconds": "{:.1f}".format, "share": "{:.1%}".format}))
    print(f"{wall:.0f} s on {facts['cores']} cores; outside jobs {outside:.1%} of the cores' time")
    RESULTS.mkdir(exist_ok=True)
    result = {"machine": facts, "wall_seconds": wall, "outside_jobs": outside, "stages": stages.to_dict("index")}
    (RESULTS / "demo.json").write_text(json.dumps(result, indent=2) + "\n")


def read_jobs(results: Path) -> pd.DataFrame:
    """One row a job: its rule's part of the benchmark path, and its seconds `s`."""
    frames = []
    for path in results.glob("*/benchmarks/**/*.tsv"):
        parts = path.relative_to(results).with_suffix("").parts[2:]
        frames.append(pd.read_csv(path, sep="\t").assign(rule=parts[0]))
    return pd.concat(frames)


if __name__ == "__main__":
    main()
