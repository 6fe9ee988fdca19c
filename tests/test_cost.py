"""What a piece of work costs, as far as the system tells."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusion import cost


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models run on the CPU, were there a GPU or not."""
    monkeypatch.setenv("FUSION_DEVICE", "cpu")


class Counted(cost.Host):
    """A memory that held so many bytes before a piece of work, and so many at most within it."""

    def reset(self) -> int:
        return 100

    def peak(self) -> int:
        return 350


def test_the_memory_is_that_of_the_device_where_models_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cost.MEMORY, "meta", Counted())
    monkeypatch.setenv("FUSION_DEVICE", "meta")
    with cost.measured() as found:
        pass
    assert found.peak_bytes == 250
    monkeypatch.setenv("FUSION_DEVICE", "cpu")
    with cost.measured() as found:
        pass
    assert found.peak_bytes != 250
    assert type(cost.MEMORY["cuda"]) is cost.Gpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_peak_on_a_gpu_is_what_was_allocated_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_DEVICE", "cuda")
    held = torch.ones(1_000_000, device="cuda")
    with cost.measured() as found:
        torch.ones(16_000_000, device="cuda").sum()
    assert 64e6 <= found.peak_bytes < 70e6 and len(held)


@pytest.mark.parametrize("name", ["STATUS", "CLEAR_REFS"])
@pytest.mark.parametrize("place", ["missing/file", "."])
def test_memory_that_the_system_does_not_tell_is_minus_one(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, name, tmp_path / place)
    with cost.measured() as found:
        pass
    assert found.peak_bytes == -1 and found.seconds >= 0


@pytest.mark.skipif(not cost.CLEAR_REFS.exists(), reason="Linux tells")
def test_the_peak_counts_what_was_held_within_the_block_alone() -> None:
    work = "import torch; from fusion import cost\nheld = torch.ones(50_000_000)\n"
    work += "with cost.measured() as found:\n    torch.ones(16_000_000).sum()\nprint(found.peak_bytes)"
    # in a process of its own: what other tests held may be given back meanwhile, and count against it
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=True)
    assert int(done.stdout) == -1 or 40e6 < int(done.stdout) < 160e6
