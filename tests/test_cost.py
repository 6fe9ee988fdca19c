"""What a piece of work costs, as far as the system tells."""

from pathlib import Path

import pytest
import torch

from fusion import cost

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its own memory is measured")


@no_gpu
@pytest.mark.parametrize("name", ["STATUS", "CLEAR_REFS"])
@pytest.mark.parametrize("place", ["missing/file", "."])
def test_memory_that_the_system_does_not_tell_is_minus_one(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, name, tmp_path / place)
    with cost.measured() as found:
        pass
    assert found.peak_bytes == -1 and found.seconds >= 0


@no_gpu
@pytest.mark.skipif(not cost.CLEAR_REFS.exists(), reason="Linux tells")
def test_the_peak_counts_what_was_held_within_the_block_alone() -> None:
    with cost.measured() as found:
        torch.ones(16_000_000).sum()
    assert found.peak_bytes == -1 or found.peak_bytes > 40e6
