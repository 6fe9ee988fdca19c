"""With slurmdbd, which keeps accounts and enforces their limits, the outcome is that of a SLURM without accounting."""

import subprocess

import pytest
from cluster import Sandbox
from mini_slurm import Slurm
from waiting import wait_for

pytestmark = pytest.mark.slow
SLURM = {"accounting": True}


def test_jobs_finish_and_fail_as_without_accounting(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", jobs=4, resources="runtime=5, mem_mb=100, slurm_account='rich'")
    sandbox.rule("fail", resources="runtime=5, mem_mb=100, slurm_account='rich'")
    code, output = sandbox.run()
    assert code == 1 and "the loss is nan" in output, output
    assert all((sandbox.folder / f"facts/{i}").exists() for i in range(4)) and not (sandbox.folder / "fail/0").exists()
    # there is accounting, and the jobs get into it
    wait_for(lambda: accounts_of_jobs() == {"rich"}, "the jobs' account", over=slurm.is_over, state=accounts_of_jobs)


def test_a_limit_of_jobs_is_waited_for_and_what_can_never_be_fails_at_once(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", jobs=3, resources="runtime=5, mem_mb=100, slurm_account='poor'")
    code, output = sandbox.run()
    assert code == 0 and output.count("takes no more jobs for now (sbatch: error: AssocMaxSubmitJobLimit") == 1, output
    assert all((sandbox.folder / f"facts/{i}").exists() for i in range(3))


def test_an_account_that_is_not_mine_fails_at_once_in_slurms_words(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", resources="runtime=5, mem_mb=100, slurm_account='nobody'")
    code, output = sandbox.run()
    assert code == 1 and "Invalid account" in output, output


def accounts_of_jobs() -> set[str]:
    """The accounts of all jobs in the accounting data base."""
    command = ["sacct", "--noheader", "--allocations", "--format=Account", "--parsable2"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
