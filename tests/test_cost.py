"""What a piece of work costs, as far as the system tells."""

import subprocess
import sys
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
    work = "import torch; from fusion import cost\nheld = torch.ones(50_000_000)\n"
    work += "with cost.measured() as found:\n    torch.ones(16_000_000).sum()\nprint(found.peak_bytes)"
    # in a process of its own: what other tests held may be given back meanwhile, and count against it
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=True)
    assert int(done.stdout) == -1 or 40e6 < int(done.stdout) < 160e6
