"""How long the workflow takes to plan: 20 tasks × 3 modes × 25 methods × 3 seeds, `python benchmarks/plan.py`."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from machine import machine

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
REPEATS = 3


def main() -> None:
    """Measures `snakemake -n`, prints the seconds and writes results/plan.json."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.yaml"
        path.write_text(yaml.safe_dump(large(folder)))
        seconds = sorted(_plan(path) for _ in range(REPEATS))
    print(f"planning 20 tasks × 3 modes × 25 methods × 3 seeds: {seconds[REPEATS // 2]:.1f} s (median of {REPEATS})")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "plan.json").write_text(json.dumps({"machine": machine(), "seconds": seconds}, indent=2) + "\n")


def large(results: str) -> dict[str, object]:
    """The demo's configuration with 20 tasks, 25 methods and 3 seeds."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    row = yaml.safe_load((ROOT / "config/tasks.yaml").read_text(encoding="utf-8"))["trec"]
    tasks = {f"task{i}": row for i in range(20)}
    methods = {f"method{i}": {"algorithm": "task_arithmetic"} for i in range(25)}
    define = {"tasks": tasks, "methods": methods, "suites": {"large": {"tasks": list(tasks)}}}
    names = {"run": "large", "results": results, "seeds": [0, 1, 2], "suites": ["large"], "methods": list(methods)}
    return config | names | {"define": define}


def _plan(path: Path) -> float:
    program = Path(sys.executable).parent / "snakemake"
    began = time.monotonic()
    subprocess.run([program, "-n", "--configfile", path], cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
