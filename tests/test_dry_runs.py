"""What `snakemake -n` shows under the profiles as they are shipped."""

import re
import shutil
from pathlib import Path

import pytest
import waiting
import yte
from cluster import Sandbox
from snakemake.cli import get_argument_parser
from tiny import ROOT, command, environment, snakemake

SHOWN = (
    "from snakemake_executor_plugin_submitit.asked import show_in_dry_runs\nshow_in_dry_runs()\nlocalrules: all, near\n"
)
RULES = """
rule large:
    output: "large/{i}"
    threads: 3
    resources: gpus="a100:2", mem_mb=lambda w: 100 * (int(w.i) + 1), runtime=lambda w: 5 * (int(w.i) + 1)
    shell: "touch {output}"

rule small:
    output: "small/{i}"
    resources: mem_mb_per_cpu=300, slurm_partition=lambda w: ["short", "long"][int(w.i)], cpus_per_task=2
    shell: "touch {output}"

rule near:
    output: "near"
    shell: "touch {output}"
"""


def shown(sandbox: Sandbox, *options: str) -> list[list[str]]:
    """The words of each line that a dry run with the shipped profiles prints."""
    sandbox.add(SHOWN + RULES, *(f"{size}/{i}" for size in ("large", "small") for i in range(2)), "near")
    shutil.copytree(ROOT / "profiles/default", sandbox.folder / "profiles/default")
    shutil.copytree(ROOT / "profiles/slurm", sandbox.folder / "home/snakemake/slurm")
    settings = sandbox.environment | {"XDG_CONFIG_HOME": str(sandbox.folder / "home")}
    run = waiting.run([command(sandbox.folder)[0], *options], cwd=sandbox.folder, env=settings)
    assert run.returncode == 0, run.stdout
    return [line.split() for line in run.stdout.splitlines()]


def quiet(profile: str, *options: str) -> list[str]:
    """What the shipped profile makes Snakemake quiet about, given these options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SNAKEMAKE_PROFILE", raising=False)
        patch.setattr("sys.argv", ["snakemake", *options])
        settings = yte.process_yaml((ROOT / f"profiles/{profile}/config.yaml").read_text())
    assert settings
    return settings["quiet"]


def flags() -> set[str]:
    """Snakemake's options of one letter that take no value, without the dash."""
    options = (name for action in get_argument_parser()._actions if action.nargs == 0 for name in action.option_strings)
    return {name[1] for name in options if len(name) == 2}


@pytest.mark.parametrize("profile", ["default", "slurm"])
def test_a_dry_run_is_known_by_any_way_to_ask_for_it(profile: str) -> None:
    combined = [f"-{letter}n" for letter in flags() - {"n"}]
    for option in ("-n", "-np", "-nq", "-kpn", "--dry-run", "--dryrun", "--dry-r", *combined):
        assert "progress" not in quiet(profile, "finetune", option), option
    for options in ((), ("-p",), ("--nolock",), ("-snew/Snakefile",), ("-j", "n"), ("-c1",), ("--no-hooks", "-kp")):
        assert "progress" in quiet(profile, *options), options


@pytest.mark.slow
def test_the_pages_command_for_a_host_with_a_network_fetches_and_prepares_alone(tmp_path: Path) -> None:
    found = re.search(r"`snakemake (--cores 2 --until [^`]+)`", (ROOT / "docs/slurm.md").read_text())
    assert found
    run = snakemake(tmp_path, "-n", *found[1].split())
    assert run.returncode == 0, run.output
    jobs = {line.split()[0] for line in run.output.splitlines() if re.fullmatch(r"\w+ +\d+", line)}
    assert jobs == {"prepare_task", "prepare_backbone", "total"}, run.output


@pytest.mark.slow
@pytest.mark.parametrize("option", ["-n", "-pn"])
def test_a_dry_run_shows_its_jobs_by_rule_once(sandbox: Sandbox, option: str) -> None:
    lines = shown(sandbox, option)
    for row in (["large", "2"], ["small", "2"], ["near", "1"], ["total", "6"]):
        assert lines.count(row) == 1, lines
    assert not any("SLURM" in line or "output:" in line for line in lines)


@pytest.mark.slow
def test_under_the_slurm_profile_it_shows_what_the_jobs_of_each_rule_ask_for(sandbox: Sandbox) -> None:
    lines = shown(sandbox, "--profile", "slurm", "-n")
    assert lines.count(["large", "2"]) == 1
    assert ["job", "partition", "GPUs", "minutes", "MB", "cores"] in lines
    assert ["large", "a100:2", "5–10", "100–200", "3"] in lines
    assert ["small", "long,", "short", "60", "300/core", "2"] in lines
    assert ["On", "this", "host:", "near,", "all"] in lines


@pytest.mark.slow
def test_processes_of_this_machine_ask_nobody(sandbox: Sandbox) -> None:
    lines = shown(sandbox, "--profile", "slurm", "--submitit-cluster", "local", "-n")
    assert lines.count(["large", "2"]) == 1 and not any("SLURM" in line for line in lines)


@pytest.mark.slow
def test_the_suite_itself_shows_both_tables(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "profiles/slurm", tmp_path / "snakemake/slurm")
    settings = {**environment(), "XDG_CONFIG_HOME": str(tmp_path)}
    where = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)]
    configuration = ["--configfile", str(ROOT / "config/config.yaml")]
    snakemake = [command(tmp_path)[0], "--profile", "slurm", "--dry-run", *where, *configuration]
    run = waiting.run(snakemake, cwd=tmp_path, env=settings)
    assert run.returncode == 0, run.stdout
    assert re.search(r"^finetune_task +12$", run.stdout, re.MULTILINE)
    assert re.search(r"^finetune_task +1 +\d+ +\d+ +4$", run.stdout, re.MULTILINE)
    assert "\nOn this host: fetch_archive, prepare_backbone, prepare_task, tables, report, all" in run.stdout
