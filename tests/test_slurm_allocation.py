"""What a job on a real SLURM knows of what was asked for it."""

import json
from pathlib import Path

import pytest
from cluster import ROOT, Sandbox
from mini_slurm import Slurm

pytestmark = pytest.mark.slow
SLURM = {"max_array": 121}
STAGE = """
import json
from pathlib import Path

from fusion.allocation import allocation

def given(job):
    Path(job.output["out"]).write_text(json.dumps(allocation()))
"""
RULE = """
rule {name}:
    output: out="{name}.json"
    resources: runtime=7, {memory}
    params: stage="given_stages:given"
    script: "{script}"
"""


def test_a_job_knows_the_memory_that_was_asked_for_it(slurm: Slurm, sandbox: Sandbox) -> None:
    (sandbox.folder / "given_stages.py").write_text(STAGE)
    script = ROOT / "workflow/scripts/stage.py"
    for name, memory in {"whole": "mem_mb=400", "by_core": "mem_mb_per_cpu=150, cpus_per_task=2", "here": ""}.items():
        sandbox.add(RULE.format(name=name, memory=memory, script=script), f"{name}.json")
    sandbox.add("localrules: all, here\n")
    code, output = sandbox.run()
    assert code == 0, output
    whole, by_core, here = (given(sandbox.folder / f"{name}.json") for name in ("whole", "by_core", "here"))
    assert whole["asked_mb"] == 400 and by_core["asked_mb"] == 300 and here == {}
    assert 10 < whole["used_mb"] < 400 and 0 < whole["used_minutes"] < 7
    assert whole["asked_minutes"] == 7


def given(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())
