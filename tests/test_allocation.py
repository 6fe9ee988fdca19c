"""What a job says of what it was given."""

import pytest

from fusion.allocation import ALLOCATION, allocation
from fusion.job import MINUTES, QUEUED


@pytest.mark.parametrize("memory", [{"SLURM_MEM_PER_NODE": "800"}, {"SLURM_MEM_PER_CPU": "200"}])
def test_a_submitted_job_knows_what_was_asked_for_it(memory: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ({QUEUED: "1.5", MINUTES: "60", "SLURM_CPUS_ON_NODE": "4"} | memory).items():
        monkeypatch.setenv(name, value)
    found = allocation()
    assert tuple(sorted(found)) == tuple(sorted(ALLOCATION))
    assert (found["asked_mb"], found["asked_minutes"]) == (800, 60)
    assert 10 < found["used_mb"] < 100_000 and 0 < found["used_minutes"] < 600


def test_what_the_scheduler_does_not_say_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(QUEUED, "0")
    assert set(allocation()) == {"used_mb", "used_minutes"}


def test_a_job_in_an_allocation_of_its_user_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "800")
    assert allocation() == {}
