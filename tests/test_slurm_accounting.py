"""With slurmdbd, which keeps accounts and enforces their limits, the outcome is that of a SLURM without accounting."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Sandbox
from mini_slurm import NoSlurm, Slurm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A SLURM with accounts; the tests are skipped with the reason where none can be had."""
    slurm = Slurm(tmp_path_factory.mktemp("slurm"), accounting=True)
    try:
        slurm.start()
    except NoSlurm as reason:
        if os.environ.get("REQUIRE_SLURM"):
            raise
        pytest.skip(str(reason))
    yield slurm
    slurm.stop()


def test_jobs_finish_and_fail_as_without_accounting(slurm: Slurm, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.rule("facts", jobs=4, resources="runtime=5, mem_mb=100, slurm_account='rich'")
    sandbox.rule("fail", resources="runtime=5, mem_mb=100, slurm_account='rich'")
    code, output = sandbox.run()
    assert code == 1 and "the loss is nan" in output, output
    assert all((tmp_path / f"facts/{i}").exists() for i in range(4)) and not (tmp_path / "fail/0").exists()
    accounts = subprocess.run(
        ["sacct", "--noheader", "--allocations", "--format=Account", "--parsable2"], capture_output=True, text=True
    )
    assert set(accounts.stdout.split()) == {"rich"}  # there is accounting, and the jobs are in it


def test_a_quota_fails_at_once_in_slurms_words(slurm: Slurm, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.rule("facts", name="many", jobs=3, resources="runtime=5, mem_mb=100, slurm_account='poor'")
    sandbox.rule("facts", resources="runtime=5, mem_mb=100, slurm_account='rich'")
    code, output = sandbox.run(seconds=60)
    assert code == 1 and "accounting/QOS policy" in output, output
    assert (tmp_path / "facts/0").exists() and not (tmp_path / "many/0").exists()


def test_an_account_that_is_not_mine_fails_at_once_in_slurms_words(slurm: Slurm, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.rule("facts", resources="runtime=5, mem_mb=100, slurm_account='nobody'")
    code, output = sandbox.run(seconds=60)
    assert code == 1 and "Invalid account" in output, output
