"""One thread, so that results and times do not depend on the machine's cores; and the tiny world, made once."""

import shutil
from pathlib import Path

import pytest
import torch
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
