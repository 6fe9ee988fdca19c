"""One thread, so that results and times do not depend on the machine's cores; the tiny world and a SLURM, made once.

torch and transformers are imported where they are used: of several processes, the one that hands out tests needs none.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster import Sandbox
from mini_slurm import NoSlurm, Slurm

if TYPE_CHECKING:
    from tiny_stages import World


def pytest_configure() -> None:
    """Ctrl-C ends what tests start, also where a shell that runs this in the background had it ignored by all."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread of torch in all tests."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny world with model, data, heads and adapters' initial values; tests add to it, and change nothing."""
    from tiny_stages import prepare

    return prepare(tmp_path_factory.mktemp("world"))


@pytest.fixture
def new_world(world: World, tmp_path: Path) -> World:
    """A copy of the tiny world, to change."""
    from tiny_stages import TASKS, World

    for task in TASKS:
        world.finetuned("lora", task)
    return World(Path(shutil.copytree(world.folder, tmp_path / "world")), world.plan)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that `checkpoints.write_models` writes; tests read them."""
    from checkpoints import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def daemons(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A SLURM as the module's `SLURM` says; the tests are skipped with the reason where none can be had."""
    slurm = Slurm(tmp_path_factory.mktemp("slurm"), **request.module.SLURM)
    try:
        slurm.start()
    except NoSlurm as reason:
        if os.environ.get("REQUIRE_SLURM"):
            raise
        pytest.skip(str(reason))
    yield slurm
    slurm.stop()


@pytest.fixture
def slurm(daemons: Slurm) -> Iterator[Slurm]:
    """A SLURM without jobs."""
    yield daemons
    daemons.clear()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """An empty workflow for a cluster."""
    return Sandbox(tmp_path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Fast tests first. Several processes, which take one module after another, begin with those of most slow tests,
    so that none has long to go when the others are done."""

    def is_slow(item: pytest.Function) -> bool:
        return item.get_closest_marker("slow") is not None

    if hasattr(config, "workerinput"):
        slow = Counter(item.module.__name__ for item in items if is_slow(item))
        items.sort(key=lambda item: -slow[item.module.__name__])
    else:
        items.sort(key=is_slow)
