"""Pictures a second of evaluation against a bare loop of the same model: `python benchmarks/images.py`.

A CLIP ViT-B/32 of true size with random weights scores a task of JPEG pictures that the preparing stage wrote. The
first model decodes them, a further one finds its batches made; the bare loop has them decoded before it begins, and
computes nothing but logits. Repetitions are interleaved, and medians compared.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from machine import bound, verdict, write
from PIL import Image
from torch import Generator, Tensor
from torch.nn.functional import normalize
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from fusion.backbones import Backbone, open_backbone
from fusion.data.tasks import TaskData
from fusion.device import autocast, device, precision
from fusion.job import Job
from fusion.stages.prepare import prepare_task
from fusion.suites import Scored, Suite

Result = TypeVar("Result")
AT_LEAST = 0.9
SIDE = 300  # pixels
CLASSES = {"one": "a one", "two": "a two"}
SPLITS = {"train": 4, "val": 4}  # pictures of those that are not scored; a task must have them


def main() -> None:
    """Measures, prints, and writes results/images.json."""
    on_gpu = device().type == "cuda"
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pictures", type=int, default=1536 if on_gpu else 384)
    arguments.add_argument("--batch-size", type=int, default=128 if on_gpu else 64)
    arguments.add_argument("--repetitions", type=int, default=20 if on_gpu else 5, help="of each; the medians count")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        suite = Suite(["pictures"], [prepared(Path(name), options.pictures)], [random_head()])
        backbone = random_clip(Path(name) / "model")
        seconds = measured(suite, backbone, options.batch_size, options.repetitions)
    speed = {name: options.pictures / median for name, median in seconds.items()}
    ratios = {name: bound(speed[name] / speed["bare"], at_least=AT_LEAST) for name in ("first", "further")}
    for name, ratio in ratios.items():
        print(f"{name} model: {speed[name]:.1f} pictures/s, {verdict(ratio)} of the bare loop's {speed['bare']:.1f}")
    facts = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "precision": str(precision())}
    write("images", {**facts, **vars(options), "pictures_a_second": speed, **ratios})


def measured(suite: Suite, backbone: Backbone, batch_size: int, repetitions: int) -> dict[str, float]:
    """The median seconds that the first model takes, a further one, and the bare loop."""
    weights = {name: parameter.detach() for name, parameter in backbone.module.named_parameters()}
    times: dict[str, list[float]] = {"first": [], "further": [], "bare": []}
    for _ in range(1 + repetitions):
        for name, seconds in once(suite, backbone, weights, batch_size).items():
            times[name].append(seconds)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def once(suite: Suite, backbone: Backbone, weights: Mapping[str, Tensor], batch_size: int) -> dict[str, float]:
    """The seconds of each, one after the other."""

    def first() -> Scored:
        (scored,) = suite.scored(backbone, "test", None, batch_size)
        scored.predict(backbone, weights)
        return scored

    scored, seconds = timed(first)
    _, again = timed(lambda: scored.predict(backbone, weights))
    batches = [batch for _, batch in scored.inputs.batches]
    _, alone = timed(lambda: bare(backbone, weights, scored.head, batches))
    return {"first": seconds, "further": again, "bare": alone}


@torch.inference_mode()
def bare(backbone: Backbone, weights: Mapping[str, Tensor], head: Tensor, batches: list[Any]) -> None:
    """The logits of decoded batches."""
    for batch in batches:
        with autocast():
            backbone.logits(weights, batch, head)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and the seconds until the work is done, on a GPU too."""
    began = time.perf_counter()
    result = work()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - began


def prepared(folder: Path, count: int) -> TaskData:
    """A task with `count` random pictures to be scored, as the preparing stage writes it."""
    rng = np.random.default_rng(0)
    for split, size in {**SPLITS, "test": count}.items():
        for number in range(size):
            path = folder / "files" / split / list(CLASSES)[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(rng))
    files = {split: split for split in (*SPLITS, "test")}
    source = {"folder": str(folder / "files"), "files": files, "format": {"kind": "image_folder"}}
    row = {"modality": "image", "sources": [source], "classes": CLASSES, "prompt": "{}"}
    output = {"data": str(folder / "data")}
    prepare_task(Job("fusion.stages.prepare:prepare_task", {}, output, {"settings": {"name": "pictures", **row}}))
    return TaskData(folder / "data")


def jpeg(rng: np.random.Generator) -> bytes:
    """A picture of smooth colours with a little noise, as a camera's is: some 25 kB."""
    colours = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def random_clip(folder: Path) -> Backbone:
    """The image tower of a CLIP ViT-B/32 that has learned nothing."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(image_size=224, patch_size=32, projection_dim=512)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return open_backbone(folder, {"kind": "clip", "options": {"logit_scale": 100.0}})


def random_head() -> Tensor:
    """Class embeddings (C, 512)."""
    return normalize(torch.randn(len(CLASSES), 512, generator=Generator().manual_seed(0)), dim=-1).to(device())


if __name__ == "__main__":
    main()
