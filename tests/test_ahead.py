"""Batches made by other processes: the same ones in the same order, and no process stays behind."""

import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest
import torch
import waiting
from tiny_stages import World

from fusion import ahead as module
from fusion.ahead import CORES, MOST, ahead, workers
from fusion.data.tasks import TaskData
from fusion.job import run
from fusion.objectives import entropy
from fusion.scoring import batched, predict
from fusion.suites import Suite

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[0, 1, 2], ids=["in turn", "one process", "two processes"])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many processes make batches."""
    return by(request.param, monkeypatch)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> int:
    """Two processes make batches."""
    return by(2, monkeypatch)


def by(number: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "workers", lambda place: number)
    return number


def children() -> list[psutil.Process]:
    """The processes that this one started and that are not those of other tests."""
    found = psutil.Process().children()
    return [one for one in found if one.pid not in BEFORE]


BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def before() -> None:
    BEFORE.clear()
    BEFORE.update(one.pid for one in psutil.Process().children())


def batch(key: int) -> tuple[int, dict[str, torch.Tensor], int]:
    """What is made of a key, and in which process."""
    return key, {"a": torch.full((3,), key), "b": torch.arange(key)}, os.getpid()


def failing(key: int) -> int:
    if key == 3:
        raise ValueError(f"no batch {key}")
    return key


def test_all_batches_come_in_the_order_of_their_keys_and_the_processes_end(processes: int) -> None:
    found = list(ahead(batch, range(20)))
    assert [key for key, _, _ in found] == list(range(20))
    assert all(made["a"].tolist() == [key] * 3 and made["b"].tolist() == list(range(key)) for key, made, _ in found)
    assert len({process for _, _, process in found} - {os.getpid()}) == processes
    assert list(ahead(batch, [])) == []
    assert children() == []


def test_keys_may_be_endless_and_few_are_asked_for(processes: int) -> None:
    keys = count()
    found = ahead(batch, keys)
    assert [next(found)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert next(keys) <= 5 + 2 * processes


def test_an_exception_comes_in_the_place_of_its_batch_and_says_where_it_was_raised(processes: int) -> None:
    found = ahead(failing, range(9))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no batch 3") as caught:
        next(found)
    assert 'raise ValueError(f"no batch {key}")' in str(caught.getrepr()) + str(caught.value)
    assert next(found, "none") == "none" or not processes
    assert children() == []


def test_a_process_that_is_killed_is_an_error(two: int) -> None:
    found = ahead(batch, count())
    _, _, process = next(found)
    os.kill(process, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly|ended before its batch came"):
        for _ in range(100):
            next(found)
    assert children() == []


@pytest.mark.parametrize("leave", ["close", "forget", "raise"])
def test_the_processes_end_when_the_reader_stops_early(two: int, leave: str) -> None:
    found = ahead(batch, count())
    next(found)
    assert len(children()) == 2
    if leave == "close":
        found.close()  # pyright: ignore[reportAttributeAccessIssue]
    elif leave == "raise":
        with pytest.raises(RuntimeError):
            raise_while_reading(found)
    del found
    assert children() == []


def raise_while_reading(found: Iterator[object]) -> None:
    for _ in found:
        raise RuntimeError


def test_what_a_scheduler_signals_to_all_processes_of_a_job_is_for_the_stage_alone(two: int) -> None:
    found = ahead(batch, count())
    next(found)
    numbers = [str(process.pid) for process in children()]
    for name in ("USR1", "USR2", "INT", "TERM"):
        subprocess.run(["kill", f"-{name}", *numbers], check=True)  # by another process than the stage's
    assert [next(found)[0] for _ in range(40)] == list(range(1, 41))
    for process in children():  # as at the end of a stage that had no time to close what it read
        process.terminate()
    psutil.wait_procs(children(), timeout=waiting.BACKSTOP)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in children())


def test_batches_of_a_gpu_are_made_by_all_cores_of_the_job_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CORES, raising=False)
    assert workers(CPU) == 0
    for seen, given, expected in ((1, "", 1), (2, "", 1), (8, "", 7), (64, "", MOST), (64, "4", 3), (2, "8", 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, seen=seen: set(range(seen)))
        monkeypatch.setenv(CORES, given or str(seen))
        assert workers(GPU) == expected


def test_predictions_and_unlabelled_batches_are_the_same_made_ahead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, data = world.backbone(), TaskData(world.data("creatures"))
    head = torch.randn(len(data.info["classes"]), 32, generator=torch.Generator().manual_seed(0))
    suite = Suite(["creatures"], [data], [head])

    def read() -> tuple[torch.Tensor, ...]:
        inputs = batched(backbone, data.inputs("test"), 3)
        once, again = (predict(backbone, {}, head, inputs) for _ in range(2))
        stream = suite.unlabelled(backbone, "val", 4, seed=1)
        first = torch.cat([next(stream)["input_ids"].flatten() for _ in range(5)])
        assert torch.equal(once.entropies, again.entropies)
        return once.labels, once.entropies, first

    before = read()
    by(2, monkeypatch)
    assert all(torch.equal(one, other) for one, other in zip(before, read(), strict=True))
    assert children() == []


def test_two_who_read_at_once_have_all_batches(world: World, two: int) -> None:
    inputs = batched(world.backbone(), TaskData(world.data("creatures")).inputs("test")[:9], 2)
    first, second = inputs.batches, inputs.batches
    next(first)
    found = [[part for part, _ in second], [part for part, _ in first]]
    assert found[1] == found[0][1:] and sorted(i for part in found[0] for i in part) == list(range(9))


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
    by(2, monkeypatch)
    run(jobs[1])
    one, other = (Path(job.output["model"]) / "adapter_model.safetensors" for job in jobs)
    assert one.read_bytes() == other.read_bytes()
    assert children() == []
