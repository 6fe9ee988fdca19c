"""Loops that numba compiles."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

LOOP = """
from fusion.compiled import compiled


@compiled
def total(values):
    found = 0.0
    for value in values:
        found += value
    return found
"""


def test_machine_code_is_kept_for_other_processes(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(LOOP)
    command = [sys.executable, "-c", "import numpy, loop; print(loop.total(numpy.arange(4.0)))"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    first = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "__pycache__").glob("loop.total*")}
    assert first.stdout == "6.0\n" and kept
    again = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
    assert again.stdout == "6.0\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "__pycache__").glob("loop.total*")} == kept


def test_a_loop_with_no_place_for_its_machine_code_runs_nevertheless() -> None:
    found: dict[str, object] = {}
    exec(LOOP, found)  # code of no file, beside which nothing can be written
    total = found["total"]
    assert callable(total) and total(np.arange(5.0)) == 10.0
