"""How jobs that wait are put together and handed to the scheduler; on a real SLURM in test_slurm_bundles.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.resources import Resource, ResourceScopes

from snakemake_executor_plugin_submitit.backends import Full
from snakemake_executor_plugin_submitit.bundles import Bundles, Waiting, alike
from snakemake_executor_plugin_submitit.held import Held, NotNow
from snakemake_executor_plugin_submitit.limits import take_over, takes
from snakemake_executor_plugin_submitit.room import Room
from snakemake_executor_plugin_submitit.slurm import State

ONE = {"_nodes": 1}


@dataclass(eq=False)
class Job:
    """What is asked of a job of Snakemake."""

    number: int
    name: str = "fuse"
    priority: int = 0

    @property
    def rule(self) -> Any:
        return SimpleNamespace(name=self.name)

    @property
    def output(self) -> list[str]:
        return [f"{self.name}/{self.number}"]

    def is_group(self) -> bool:
        return False


def waiting(job: Job, size: int = 16, since: float = 0.0, **wanted: Any) -> Waiting:
    return Waiting(job, wanted, size, ONE, since)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("came", "needed", "size", "now", "go", "wait"),
    [
        (48, 48, 16, 0, [16, 16, 16], 0),
        (40, 40, 16, 0, [16, 16, 8], 0),  # nothing else can come
        (40, 48, 16, 0, [16, 16], 8),
        (40, 48, 16, 59, [16, 16], 8),
        (40, 48, 16, 60, [16, 16, 8], 0),  # its first job has waited for a minute
        (5, 48, 16, 0, [], 5),
        (5, 48, 1, 0, [1, 1, 1, 1, 1], 0),
        (1, 1, 16, 0, [1], 0),
    ],
)
def test_a_bundle_waits_until_it_is_full_or_nothing_else_can_come_or_its_time_is_up(
    came: int, needed: int, size: int, now: float, go: list[int], wait: int
) -> None:
    jobs = [Job(number) for number in range(needed)]
    bundles = Bundles(60, jobs)
    for job in jobs[:came]:
        bundles.came(job)
        bundles.came(job)  # a second attempt is no other job
    ready, filling = bundles.split([waiting(job, size) for job in jobs[:came]], now)
    assert [len(bundle) for bundle in ready] == go and len(filling) == wait
    assert [one.job for bundle in [*ready, filling] for one in bundle] == jobs[:came]


def test_a_bundle_has_waited_since_its_own_first_job() -> None:
    jobs = [Job(number) for number in range(9)]
    bundles = Bundles(60, jobs)
    held = [waiting(job, 2, since=10.0 * job.number) for job in jobs[:3]]
    assert [len(bundle) for bundle in bundles.split(held, 79.0)[0]] == [2]
    assert [len(bundle) for bundle in bundles.split(held, 80.0)[0]] == [2, 1]


def test_jobs_go_by_priority_and_then_by_their_wait_with_equal_needs_together() -> None:
    jobs = [waiting(Job(0), since=2), waiting(Job(1), since=1), waiting(Job(2), since=3, gpus=1)]
    jobs += [waiting(Job(3, "evaluate", priority=5), since=9), waiting(Job(4, priority=1), since=9)]
    assert [[one.job.number for one in same] for same in alike(jobs)] == [[3], [4, 1, 0], [2]]


def test_limits_of_the_user_are_no_more_counted_by_snakemake() -> None:
    given = {"_nodes": 32, "gpus": 8, "_cores": 4, "mem": 1000, "words": "a"}
    resources = {name: Resource(name, value) for name, value in given.items()}
    workflow = SimpleNamespace(global_resources=resources, resource_scopes=ResourceScopes.defaults())
    limits = take_over(workflow)
    assert limits == {"_nodes": 32, "gpus": 8}
    assert workflow.resource_scopes.is_local("_nodes") and workflow.resource_scopes.is_local("gpus")
    assert not workflow.resource_scopes.is_local("words")
    assert takes(SimpleNamespace(resources={"gpus": 2}), limits) == {"_nodes": 1, "gpus": 2}
    assert takes(SimpleNamespace(resources={}), limits) == {"_nodes": 1, "gpus": 0}


@dataclass
class Scheduler:
    """A scheduler, and what waits for it; it has `most` tasks at a time, and of a user at most `limit`."""

    most: int
    limit: int = 10**9
    is_slow: bool = True
    alive: list[str] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)  # how many jobs each has
    said: list[str] = field(default_factory=list)
    failed: dict[Any, str] = field(default_factory=dict)

    def held(self, jobs: Sequence[Job]) -> Held:
        self.room = Room(self, {"_nodes": self.most}, pause=9000.0)  # pyright: ignore[reportArgumentType]
        bundles = Bundles(60, jobs)
        for job in jobs:
            bundles.came(job)
        voice: Any = SimpleNamespace(once=self.said.append)
        return Held(bundles, self.room, 1000, self.send, self.failed.__setitem__, voice)

    def send(self, bundles: Sequence[Sequence[Waiting]]) -> None:
        if len(self.alive) + len(bundles) > self.limit:
            raise Full("QOSMaxSubmitJobPerUserLimit")
        ids = [str(len(self.tasks) + number) for number in range(len(bundles))]
        self.alive += ids
        self.tasks += [len(bundle) for bundle in bundles]
        self.room.took(ids, ONE)
        assert len(self.alive) <= self.most

    def states(self, ids: object) -> dict[str, State]:
        known = map(str, range(len(self.tasks)))
        return {one: State("RUNNING" if one in self.alive else "COMPLETED", "") for one in known}

    def in_queue(self) -> int:
        return len(self.alive)


@pytest.mark.parametrize("limit", [10**9, 5])
def test_jobs_that_end_one_by_one_leave_bundles_full(limit: int) -> None:
    jobs = [Job(number) for number in range(160)]
    scheduler = Scheduler(most=8, limit=limit)
    held = scheduler.held(jobs)
    held.add(waiting(job, 8) for job in jobs)
    held.submit()
    while held:
        scheduler.alive.pop(0)
        scheduler.room._again = scheduler.room._look_again = 0.0  # as a while later
        held.submit()
    assert scheduler.tasks == [8] * 20 and not scheduler.failed
    assert bool(scheduler.said) == (limit == 5)


def test_what_waits_and_why_is_told() -> None:
    jobs = [Job(number) for number in range(6)] + [Job(number, "evaluate") for number in range(3)]
    scheduler = Scheduler(most=2)
    held = scheduler.held(jobs)
    held._bundles._to_come["evaluate"].add("evaluate/7")
    held.add([waiting(job, 1 if job.name == "fuse" else 16, since=1e9) for job in jobs])
    held.submit()
    assert held.words() == [
        "4 not submitted yet (SLURM has all that jobs: 2 allows)",
        "3 waiting for their bundles to fill",
    ]
    expected = (
        "jobs of evaluate wait for others, 60 s at most, to share a SLURM job by 16 (bundle, submitit-bundle-wait)"
    )
    assert scheduler.said == [expected]


def test_what_cannot_be_submitted_now_waits_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(bundles: object) -> None:
        raise NotNow("no GPU is free")

    scheduler, jobs = Scheduler(most=8), [Job(0), Job(1)]
    monkeypatch.setattr(scheduler, "send", send)
    held = scheduler.held(jobs)
    held.add(waiting(job) for job in jobs)
    held.submit()
    assert held.words() == ["2 not submitted yet (no GPU is free)"] and not scheduler.failed
