"""One thread, so that results and times do not depend on the machine's cores; the tiny world and a SLURM, made once."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import write_models
from cluster import Sandbox
from mini_slurm import NoSlurm, Slurm
from tiny_stages import TASKS, World, prepare

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny world with model, data, heads and adapters' initial values; tests add to it, and change nothing."""
    return prepare(tmp_path_factory.mktemp("world"))


@pytest.fixture
def new_world(world: World, tmp_path: Path) -> World:
    """A copy of the tiny world, to change."""
    for task in TASKS:
        world.finetuned("lora", task)
    return World(Path(shutil.copytree(world.folder, tmp_path / "world")), world.plan)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that `checkpoints.write_models` writes; tests read them."""
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


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Fast tests first; of several processes, one has those of a SLURM, which wait much, and one each slow module."""
    for item in items:
        if hasattr(item.module, "SLURM"):
            item.add_marker(pytest.mark.xdist_group("slurm"))
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, not hasattr(item.module, "SLURM")))
