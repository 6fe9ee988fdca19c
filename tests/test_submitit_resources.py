"""What jobs ask SLURM for: resources, GPUs, options, the user's environment, and the lines of their scripts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Sandbox
from tiny import ROOT

from snakemake_executor_plugin_submitit import environment, gpus
from snakemake_executor_plugin_submitit.jobs import batch_name
from snakemake_executor_plugin_submitit.launch import Launch, Sbatch, here
from snakemake_executor_plugin_submitit.resources import extra, parameters, require_known

STAGE = 'params: stage="cluster_stages:facts"'
LEAST: dict[str, Any] = {"timeout_min": 60, "cpus_per_task": 1}


def test_resources_become_what_sbatch_is_asked_for() -> None:
    given = {"runtime": 90, "mem_mb": 4000, "gpus": 2, "slurm_account": "lab", "qos": "high", "constraint": "a100"}
    given |= {"exclude": "node[1-3]", "reservation": "mine", "licenses": "matlab:1", "nodes": 1, "tasks": 1}
    found = parameters(given | {"slurm_extra": "--nice=10 --exclusive"}, threads=4)
    assert found == {
        "timeout_min": 90, "cpus_per_task": 4, "gpus_per_node": 2, "slurm_mem": "4000M", "slurm_account": "lab",
        "slurm_qos": "high", "slurm_constraint": "a100", "slurm_exclude": "node[1-3]",
        "slurm_additional_parameters": {
            "requeue": True, "reservation": "mine", "licenses": "matlab:1", "nice": "10", "exclusive": True
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, LEAST),
        ({"cpus_per_task": 8}, LEAST | {"cpus_per_task": 8}),
        ({"mem_mb": 1, "mem_mb_per_cpu": 500}, LEAST | {"slurm_mem_per_cpu": "500M"}),
        ({"gpus": 1, "gres": "gpu:a100:1"}, LEAST | {"slurm_gres": "gpu:a100:1", "gpus_per_node": 1}),
        ({"gpu": 1}, LEAST | {"gpus_per_node": 1}),
        ({"gpus": 0}, LEAST),
        ({"tmpdir": "/tmp", "mem_mib": 5, "_cores": 2, "attempt": 1, "disk_mb": 3}, LEAST),
    ],
)
def test_of_two_resources_for_one_thing_the_finer_wins(given: dict[str, object], expected: dict[str, object]) -> None:
    assert parameters(given, threads=1) == expected | {"slurm_additional_parameters": {"requeue": True}}


@pytest.mark.parametrize(
    ("given", "count", "asked"),
    [
        ({}, 0, ""),
        ({"gpus": 0}, 0, ""),
        ({"gpus": 2}, 2, "2"),
        ({"gpu": 2}, 2, "2"),
        ({"gpu": 1, "gpus": 1}, 1, "1"),
        ({"gpu": 2, "gpu_model": "a100"}, 2, "a100:2"),
        ({"gpus": "a100:2"}, 2, "a100:2"),
        ({"gpus": "1g.5gb:1"}, 1, "1g.5gb:1"),
        ({"gpus": "a100:1,v100:2"}, 3, "a100:1,v100:2"),
        ({"gres": "gpu:a100:2,shard:1"}, 2, ""),
        ({"gres": "gpu:2"}, 2, ""),
        ({"gres": "gpu"}, 1, ""),
        ({"gres": "gpu:a100"}, 1, ""),
        ({"gres": "gpu:a100:2(S:0-1)", "gpus": 2}, 2, ""),
        ({"gres": "shard:1"}, 0, ""),
        ({"gres": "lscratch:100", "gpus": 1}, 1, "1"),
    ],
)
def test_gpus_are_counted_in_whatever_way_they_are_asked_for(given: dict[str, Any], count: int, asked: str) -> None:
    assert (gpus.count(given), gpus.asked(given)) == (count, asked)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpus": 1, "gpu": 2}, "gpus=1, gpu=2, which are different numbers"),
        ({"gres": "gpu:2", "gpus": 1}, "different numbers"),
        ({"gpus": "a100"}, "expected a number of GPUs"),
        ({"nodes": 2}, "nodes: got 2, expected 1"),
        ({"tasks": "4"}, "tasks: got 4, expected 1"),
        ({"clusters": "other"}, "jobs on another cluster"),
        ({"gpu_manufacturer": "nvidia"}, "set gpu_model"),
        ({"partition": "gpu"}, "unknown resource 'partition'; did you mean 'slurm_partition'"),
        ({"account": "lab"}, "did you mean 'slurm_account'"),
        ({"cpus": 2}, "did you mean 'cpus_per_task'"),
        ({"walltime": 2}, "did you mean 'runtime'"),
        ({"reservaton": "x"}, "did you mean 'reservation'"),
        ({"slurm_extra": "-p gpu"}, "expected long options"),
        ({"slurm_extra": "nice"}, "expected long options"),
        ({"slurm_extra": "--=1"}, "expected long options"),
        ({"slurm_extra": "-M other"}, "jobs on another cluster"),
        ({"slurm_extra": "-Mother"}, "jobs on another cluster"),
        ({"slurm_extra": "--clusters=other"}, "jobs on another cluster"),
        ({"slurm_extra": "--clus other"}, "jobs on another cluster"),
        ({"slurm_extra": "--gres=gpu:2"}, "set the resource gres"),
        ({"slurm_extra": "--output=x"}, "the executor sets it itself"),
    ],
)
def test_what_would_be_ignored_or_misread_is_an_error_that_says_what_to_write(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        parameters(given, threads=1)


def test_a_resource_that_the_user_limits_may_have_any_name() -> None:
    require_known(["downloads", "gpus"], {"downloads"})
    with pytest.raises(ValueError, match="--resources downloads=N"):
        require_known(["downloads", "gpus"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--reservation 'my one' --contiguous", {"reservation": "my one", "contiguous": True}),
        ("--nodelist=n1 --gpu-bind=closest", {"nodelist": "n1", "gpu-bind": "closest"}),
        ("--cluster-constraint=x", {"cluster-constraint": "x"}),
    ],
)
def test_extra_options_have_their_values_in_the_same_word_or_the_next(options: str, expected: dict[str, Any]) -> None:
    assert extra(options) == expected


def test_no_requeue_takes_the_place_of_requeue() -> None:
    assert parameters({"slurm_extra": "--no-requeue"}, 1)["slurm_additional_parameters"] == {"no-requeue": True}


def test_the_environment_of_slurms_programs_has_only_what_says_where_slurm_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"SLURM_CONF": "/a", "SLURM_CONF_SERVER": "b", "SLURM_JWT": "c", "HOME": "/d"}
    gone = ["SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_X", "SQUEUE_FORMAT", "SCONTROL_ALL", "SCANCEL_QUIET"]
    for name in (*kept, *gone):
        monkeypatch.setenv(name, kept.get(name, "x"))
    found = environment.environment()
    assert found.items() >= kept.items() and not found.keys() & set(gone)
    printed = subprocess.run(environment.command("env"), capture_output=True, text=True, check=True).stdout
    assert "SLURM_JWT=c" in printed and not any(name in printed for name in gone)
    said = environment.dropped()
    assert "SBATCH_PARTITION=x (instead, set slurm_partition)" in said and "SQUEUE_FORMAT=x" in said
    assert "SLURM_JOB_ID" not in said  # Snakemake in a SLURM job is no mistake


@pytest.mark.parametrize("name", ["SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_an_environment_that_sends_jobs_to_other_clusters_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.require_one_cluster()
    monkeypatch.setenv(name, "other")
    with pytest.raises(ValueError, match=f"{name}=other is set"):
        environment.require_one_cluster()


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        (Launch(), "1 none"),
        (Launch(setup="export A=1\nexport B=two"), "1 two"),
        (Launch(setup="A=5", precommand="export B=$A"), "1 5"),
        (Launch(setup="if true\nthen\n  export B=block\nfi"), "1 block"),
        (Launch(setup="true\nfalse || true\nexport B=on"), "1 on"),
        (Launch(python=f"env B=wrapped {sys.executable}"), "1 wrapped"),
        (Launch(setup="module_of_none load x\nexport B=1"), "error: submitit-setup: module_of_none load x ended with"),
        (Launch(precommand="(exit 3)"), "error: --precommand: ( exit 3 ) ended with exit code 3"),
    ],
)
def test_a_job_begins_with_the_lines_of_the_user_and_ends_where_one_fails(launch: Launch, expected: str) -> None:
    script = f'{here(launch, is_stage=True)} -c \'import os; print(1, os.environ.get("B", "none"))\''
    done = subprocess.run(script, shell=True, capture_output=True, text=True, check=False)
    assert expected in done.stdout + done.stderr
    assert (done.returncode == 0) == (not expected.startswith("error"))


def test_a_precommand_is_not_said_twice_to_a_job_with_a_snakemake_of_its_own() -> None:
    assert "load" not in " ".join(Launch(precommand="module load x").lines(is_stage=False, delay=1))


def test_the_answer_of_sbatch_is_understood_whatever_a_site_says_before_it() -> None:
    read = Sbatch._get_job_id_from_submission_command
    assert read("sbatch: job 12 of 100 this week\nSubmitted batch job 4567\n") == "4567"
    assert read(b"Submitted batch job 8 on cluster here") == "8"


def test_a_submission_is_called_by_its_rule_and_its_run_and_a_number_of_its_own() -> None:
    class Rule:
        name = "fuse"

    found = [batch_name(Rule, {"run": "my run/1"}), batch_name(Rule, {}), batch_name(Rule, {})]
    assert found[0].startswith("fuse.my_run_1.") and found[1].count(".") == 1 and len(set(found)) == 3


@pytest.mark.slow
def test_an_unknown_resource_of_any_rule_ends_the_run_before_a_job_begins(sandbox: Sandbox) -> None:
    sandbox.rule("facts")
    sandbox.rule("facts", name="other", resources="runtime=5, walltme=3")
    code, output = sandbox.run("--submitit-cluster", "local")
    assert code == 1 and "rule other: unknown resource 'walltme'; did you mean" in output, output
    assert not Path(sandbox.folder / "facts/0").exists()
    assert sandbox.run("--submitit-cluster", "local", "--resources", "walltme=9")[0] == 0


@pytest.mark.slow
def test_setup_and_precommand_and_shadow_folders_count_without_slurm_too(sandbox: Sandbox) -> None:
    sandbox.rule("facts", resources="runtime=5, gpu=1")
    script = f'script: "{ROOT}/workflow/scripts/stage.py"'
    own = "output: out='shadow.txt'\n    resources: runtime=5, gpus=1\n    shadow: 'minimal'"
    sandbox.add(f"\nrule shadow:\n    {own}\n    {STAGE}\n    {script}\n", "shadow.txt")
    lines = "export MINE=1\nexport SLURM_JOB_PARTITION=told"
    code, output = sandbox.run(
        "--submitit-cluster", "local", "--submitit-devices", "7", "--submitit-setup", lines,
        "--precommand", "export SLURM_ARRAY_JOB_ID=$MINE",
    )  # fmt: skip
    assert code == 0, output
    called, shadow = sandbox.facts("facts/0"), sandbox.facts("shadow.txt")
    for facts in (called, shadow):
        assert (facts["SLURM_JOB_PARTITION"], facts["SLURM_ARRAY_JOB_ID"]) == ("told", "1")
        assert (facts["CUDA_VISIBLE_DEVICES"], facts["gpus"]) == ("7", 1)
    assert ".snakemake/shadow/" in shadow["folder"] and called["folder"] == str(sandbox.folder)


@pytest.mark.slow
def test_a_benchmark_is_repeated_and_the_cache_of_workflows_is_used(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(tmp_path / "cache"))
    script = f'script: "{ROOT}/workflow/scripts/stage.py"'
    asked = "resources: runtime=5, mem_mb=100"
    for name, work in {"stage": f"{STAGE}\n    {script}", "shell": "shell: 'date +%s.%N > {output}'"}.items():
        repeated = f"output: out='{name}.repeated'\n    benchmark: repeat('{name}.tsv', 3)\n    {asked}"
        sandbox.add(f"\nrule {name}_repeated:\n    {repeated}\n    {work}\n", f"{name}.repeated")
        cached = f"output: out='{name}.cached'\n    cache: True\n    {asked}"
        sandbox.add(f"\nrule {name}_cached:\n    {cached}\n    {work}\n", f"{name}.cached")
    sandbox.options += ["--submitit-cluster", "local", "--cache"]
    code, output = sandbox.run()
    assert code == 0, output
    made = {}
    for name in ("stage", "shell"):
        assert len((sandbox.folder / f"{name}.tsv").read_text().splitlines()) == 1 + 3, output
        made[name] = (sandbox.folder / f"{name}.cached").read_text()
        (sandbox.folder / f"{name}.cached").unlink()
    code, output = sandbox.run()
    assert code == 0, output
    assert made == {name: (sandbox.folder / f"{name}.cached").read_text() for name in made}, output
