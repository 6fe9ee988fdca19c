"""Batches made ahead: the same ones in the same order, few at a time, and no thread stays behind."""

import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_stages import World
from waiting import BACKSTOP

from fusion.ahead import DEPTH, ahead
from fusion.data.tasks import TaskData
from fusion.job import run
from fusion.objectives import entropy
from fusion.scoring import batched, predict
from fusion.suites import Suite


def threads() -> list[threading.Thread]:
    """Those of `ahead` that run now."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


class Counted:
    """The numbers from 0, and how many were asked for; `fails` is the one that cannot be made."""

    def __init__(self, fails: int = -1) -> None:
        self.made, self.fails = 0, fails
        self.reached = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self.reached:
                self.made += 1
                self.reached.notify_all()
            if self.made - 1 == self.fails:
                raise ValueError(f"no item {self.fails}")
            yield self.made - 1


@pytest.mark.parametrize("depth", [0, 1, 2, 50])
def test_all_items_come_in_their_order_and_the_thread_ends(depth: int) -> None:
    assert list(ahead(iter(range(20)), depth)) == list(range(20))
    assert list(ahead([], depth)) == []
    assert threads() == []


def test_none_is_an_item_like_any_other() -> None:
    assert list(ahead([None, 1, None], 2)) == [None, 1, None]


def test_an_item_is_made_while_the_one_before_it_is_used() -> None:
    items = Counted()
    found = ahead(items, 2)
    assert next(found) == 0
    with items.reached:
        assert items.reached.wait_for(lambda: items.made == 3, BACKSTOP)  # two wait, made without being asked for
    assert len(threads()) == 1


def test_no_more_than_depth_items_wait() -> None:
    items = Counted()
    found = ahead(items, 3)
    for used in range(1, 6):
        next(found)
        with items.reached:
            assert items.reached.wait_for(lambda used=used: items.made == used + 3, BACKSTOP)
    found.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert items.made == 5 + 3


@pytest.mark.parametrize("depth", [0, 2])
def test_an_exception_comes_in_the_place_of_its_item_and_says_where_it_was_raised(depth: int) -> None:
    found = ahead(Counted(fails=3), depth)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no item 3") as caught:
        next(found)
    assert traceback.extract_tb(caught.tb)[-1].line == 'raise ValueError(f"no item {self.fails}")'
    assert next(found, "none") == "none"
    assert threads() == []


@pytest.mark.parametrize("leave", ["close", "forget", "raise"])
def test_the_thread_ends_when_the_reader_stops_early(leave: str) -> None:
    found = ahead(Counted(), 2)
    next(found)
    assert len(threads()) == 1
    if leave == "close":
        found.close()  # pyright: ignore[reportAttributeAccessIssue]
    elif leave == "raise":
        with pytest.raises(RuntimeError):
            raise_while_reading(found)
    del found
    assert threads() == []


def raise_while_reading(found: Iterator[int]) -> None:
    for _ in found:
        raise RuntimeError


def test_predictions_and_unlabelled_batches_are_the_same_made_ahead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, data = world.backbone(), TaskData(world.data("creatures"))
    head = torch.randn(len(data.info["classes"]), 32, generator=torch.Generator().manual_seed(0))
    suite = Suite(["creatures"], [data], [head])

    def read() -> tuple[torch.Tensor, ...]:
        inputs = batched(backbone, data.inputs("test"), 3)
        once, again = (predict(backbone, {}, head, inputs) for _ in range(2))
        (stream,) = suite.unlabelled(backbone, "val", 4, seed=1)
        first = torch.cat([next(stream)["input_ids"].flatten() for _ in range(5)])
        assert torch.equal(once.entropies, again.entropies)
        return once.labels, once.entropies, first

    before = read()
    monkeypatch.setitem(DEPTH, "cpu", 2)
    assert all(torch.equal(one, other) for one, other in zip(before, read(), strict=True))
    assert threads() == []


def test_predictions_are_in_the_order_of_the_inputs_and_not_of_the_batches(world: World) -> None:
    backbone, texts = world.backbone(), TaskData(world.data("creatures")).inputs("test")[:9]
    assert backbone.sizes(texts) != sorted(backbone.sizes(texts))
    head = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = predict(backbone, {}, head, batched(backbone, texts, 2))
    with torch.no_grad():
        alone = torch.cat([backbone.logits({}, backbone.collate([text]), head) for text in texts])
    torch.testing.assert_close(found.entropies, entropy(alone), atol=2e-2, rtol=0)  # bfloat16 where the machine has it


def test_a_model_fine_tuned_on_batches_made_ahead_has_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [world.finetune_job("lora_dropout", "creatures", tmp_path / str(i)) for i in range(2)]
    run(jobs[0])
    monkeypatch.setitem(DEPTH, "cpu", 2)
    run(jobs[1])
    one, other = (Path(job.output["model"]) / "adapter_model.safetensors" for job in jobs)
    assert one.read_bytes() == other.read_bytes()
    assert threads() == []
