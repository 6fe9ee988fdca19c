"""A pass of an evaluation that decodes its pictures against one over prepared ones: `python benchmarks/pixels.py`.

The task and the CLIP ViT-B/32 are those of `images.py`, and pictures are prepared by the workflow's own stage. A pass
is measured with the network, and without it, as far as its batches, of which a GPU waits for each. Repetitions are
interleaved, and the medians of their ratios count; on a CPU with one thread. The file of prepared pictures is in the
machine's page cache, as one that was just read is.
"""

import argparse
import statistics
import tempfile
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from images import prepared, random_clip, random_head, timed
from machine import bound, verdict, write

from fusion.device import device, precision
from fusion.job import Job
from fusion.stages.pixels import prepare_pixels
from fusion.suites import Suite

AT_LEAST = {"batches": 10.0, "evaluation": 1.0}


def main() -> None:
    """Measures, prints, and writes results/pixels.json."""
    on_gpu = device().type == "cuda"
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pictures", type=int, default=1536 if on_gpu else 64)
    arguments.add_argument("--batch-size", type=int, default=128 if on_gpu else 32)
    arguments.add_argument("--repetitions", type=int, default=12, help="of each; the medians count")
    options = arguments.parse_args()
    if not on_gpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        decoded, backbone = prepared(folder, options.pictures), random_clip(folder / "model")
        file, (spent, _) = timed(lambda: pixels(folder))
        size, head = file.stat().st_size, random_head()
        suites = {
            "decoding": Suite(["pictures"], [decoded], [head]),
            "prepared": Suite(["pictures"], [replace(decoded, pixels={"test": file})], [head]),
        }
        seconds = [once(suites, backbone, options.batch_size) for _ in range(options.repetitions)]
    rows = [compare(what, seconds, options.pictures) for what in AT_LEAST]
    for row in rows:
        print(f"{row['what']}: {row['pictures_a_second']:.0f} pictures/s, {verdict(row['faster'])} times as decoding")
    facts = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "precision": str(precision())}
    facts |= {"seconds_to_prepare": spent, "bytes_a_picture": size / options.pictures}
    write("pixels", {**facts, "threads": torch.get_num_threads(), **vars(options), "passes": rows})


def once(suites: dict[str, Suite], backbone: Any, batch_size: int) -> dict[tuple[str, str], float]:
    """Seconds of each pass over all test pictures, one after the other."""
    found = {}
    for how, suite in suites.items():
        (made,), (predicted,) = (suite.scored(backbone, "test", None, batch_size) for _ in range(2))
        _, (found["batches", how], _) = timed(lambda made=made: deque(made.inputs.batches, maxlen=0))
        _, (found["evaluation", how], _) = timed(lambda one=predicted: one.predict(backbone, {}))
    return found


def compare(what: str, seconds: list[dict[tuple[str, str], float]], pictures: int) -> dict[str, Any]:
    """Prepared pictures a second beside decoded ones."""
    speed = {how: pictures / statistics.median(one[what, how] for one in seconds) for how in ("prepared", "decoding")}
    ratios = [one[what, "decoding"] / one[what, "prepared"] for one in seconds]
    return {
        **{"what": what, "pictures_a_second": speed["prepared"], "decoding_pictures_a_second": speed["decoding"]},
        **{"faster": bound(statistics.median(ratios), at_least=AT_LEAST[what]), "ratios": ratios},
    }


def pixels(folder: Path) -> Path:
    """The test pictures as the stage prepares them for the model in the folder."""
    settings = {"split": "test", "examples": None, "image_size": None}
    given, output = {name: str(folder / name) for name in ("model", "data")}, folder / "pixels/model/test"
    params = {"settings": settings, "code": ""}
    prepare_pixels(Job("fusion.stages.pixels:prepare_pixels", given, {"pixels": str(output)}, params))
    return output / "pixels.npy"


if __name__ == "__main__":
    main()
