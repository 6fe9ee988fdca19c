"""What a user is told of a job that failed, under the profiles as they are shipped."""

import os
import shutil
import sys
import time
from pathlib import Path
from socket import gethostname

import pytest
import waiting
from cluster import Sandbox
from tiny import ROOT

from snakemake_executor_plugin_forkserver.report import cause, tail
from snakemake_executor_plugin_forkserver.worker import _Relay

SHIPPED = {"default": ["--forkserver-preload", "json"], "slurm": ["--profile", "slurm", "--submitit-cluster", "local"]}
SHELL = """
rule shell:
    output: "shell/{i}"
    log: "logs/shell/{i}.log"
    shell: "(echo from the shell; exit 3) > {log}"

rule write:
    output: pipe("pipe/{i}")
    log: "logs/write/{i}.log"
    shell: "echo from the writer > {log}; echo > {output}; exit 4"

rule read:
    input: "pipe/{i}"
    output: "read/{i}"
    shell: "cat {input} > {output}"
"""


def fails(sandbox: Sandbox, profile: str, *options: str) -> str:
    """What Snakemake with a shipped profile, by its name, says of a run that fails."""
    for name in SHIPPED:
        shutil.copytree(ROOT / "profiles" / name, sandbox.folder / "home/snakemake" / name)
    shutil.copytree(ROOT / "profiles/default", sandbox.folder / "profiles/default")
    program = Path(sys.executable).with_name("snakemake")
    environment = sandbox.environment | {"XDG_CONFIG_HOME": str(sandbox.folder / "home")}
    command = [str(program), *SHIPPED[profile], "--keep-going", *options]
    run = waiting.run(command, cwd=sandbox.folder, env=environment)
    assert run.returncode == 1, run.stdout
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("profile", SHIPPED)
@pytest.mark.parametrize("options", [[], ["--quiet", "host"]])
def test_a_stage_that_fails_on_this_host_says_what_and_where_and_why(
    sandbox: Sandbox, profile: str, options: list[str]
) -> None:
    sandbox.rule("fail")
    sandbox.add("localrules: all, fail\n")
    output = fails(sandbox, profile, *options)
    said = f"fail i=0 failed on {gethostname()}: ValueError: the loss is nan\nThe end of its log logs/fail/0.log:\n"
    assert output.count(said) == 1 and "    line 39\n" in output, output
    assert "line 0\n" not in output and "line 0\n" in (sandbox.folder / "logs/fail/0.log").read_text()


@pytest.mark.slow
def test_rules_without_a_stage_and_groups_that_fail_say_which_and_where(sandbox: Sandbox) -> None:
    sandbox.add(SHELL, "shell/0", "read/0")
    output = fails(sandbox, "default")
    shell, group = f"shell i=0 failed on {gethostname()}: ", f"(read i=0, write i=0) failed on {gethostname()}: "
    assert output.count(shell) == 1 and output.count(group) == 1, output
    assert "returned non-zero exit status 3" in output and "returned non-zero exit status 4" in output
    assert "The end of its log logs/shell/0.log:\n    from the shell\n" in output
    assert "The end of its log logs/write/0.log:\n    from the writer\n" in output


@pytest.mark.slow
def test_where_snakemake_itself_says_what_failed_it_is_not_said_twice(sandbox: Sandbox) -> None:
    sandbox.add(SHELL, "shell/0")
    output = fails(sandbox, "default", "--quiet", "host")
    assert "Error in rule shell:" in output and "failed on" not in output, output


def test_the_end_of_a_log_is_short_however_long_its_lines_are(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(
        b"a long one" * 2_000_000 + b"\n" + b"".join(b"\r%d of 1000000" % step for step in range(1_000_000))
    )
    with log.open("ab") as file:
        file.write(b"\r\nthe loss is nan\n")
    assert tail([str(log)]) == f"The end of its log {log}:\n    999999 of 1000000\n    the loss is nan"
    log.write_text("x" * 3_000_000 + "\n" + "\n".join("y" * 100_000 for _ in range(30)))
    assert len(tail([str(log)])) < 5000


def test_the_end_of_a_log_is_its_last_lines_whatever_bytes_they_are(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(b"line %d" % line for line in range(40)) + b"\n\xff\n")
    lines = "".join(f"\n    line {line}" for line in range(26, 40))
    assert (
        tail([str(tmp_path / "none"), str(log)]) == f"The end of its log {log}:{lines}\n    \N{REPLACEMENT CHARACTER}"
    )


def test_a_cause_is_short() -> None:
    assert cause(ValueError("nan")) == "ValueError: nan"
    assert len(cause(ValueError("x" * 10_000))) < 1100


def relayed(tmp_path: Path, *writes: str) -> str:
    """What reaches the terminal of what is written."""
    terminal = os.open(tmp_path / "terminal", os.O_RDWR | os.O_CREAT)
    with (tmp_path / "log").open("wb") as log:
        relay = _Relay(log, terminal)  # pyright: ignore[reportArgumentType]
        for text in writes:
            relay.write(text)
        relay.flush()
    os.close(terminal)
    assert (tmp_path / "log").read_bytes().decode() == "".join(writes)
    return (tmp_path / "terminal").read_text()


@pytest.mark.parametrize(
    ("writes", "shown"),
    [
        (["» a", "\n", "b\n» c\nd"], "» a\n» c\n"),
        (["» a\r\n", "» b\r", "\n"], "» a\n» b\n"),  # the end of a line on other systems
        (["1 of 2", "\r2 of 2", "\r» a\n"], "» a\n"),
        (["» 1 of 2\r", "» 2 of 2\n"], "» 2 of 2\n"),
        (["» a\rb\n"], ""),
        (["a » b\n", "»", " c\n"], "» c\n"),
    ],
)
def test_lines_with_the_mark_reach_the_terminal_as_a_terminal_shows_them(
    tmp_path: Path, writes: list[str], shown: str
) -> None:
    assert relayed(tmp_path, *writes) == shown


def test_a_progress_bar_costs_time_in_proportion_to_its_length(tmp_path: Path) -> None:
    began = time.process_time()
    assert relayed(tmp_path, *(f"\r{'#' * 80} {step}" for step in range(50_000)), "\n") == ""
    assert time.process_time() - began < 5, "0.3 seconds; a minute where each update copies those before it"
