"""Pictures a second of evaluation against a bare loop of the same model: `python benchmarks/images.py`.

A CLIP ViT-B/32 of true size with random weights scores a task of JPEG pictures that the preparing stage wrote. The
first model decodes them, a further one finds its batches made; the bare loop has them decoded before it begins, and
computes nothing but logits. Repetitions are interleaved, and the medians of their ratios count. On a CPU with one
thread, as a local job has; there the ratio of processor time is also measured, which others' work changes less.
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
from fusion.device import autocast, device, on_device, precision
from fusion.job import Job
from fusion.stages.prepare import prepare_task
from fusion.suites import Scored, Suite

Result = TypeVar("Result")
Seconds = tuple[float, float]  # by the clock, and of processor time
AT_LEAST = 0.9
SIDE = 300  # pixels
CLASSES = {"one": "a one", "two": "a two"}
SPLITS = {"train": 4, "val": 4}  # pictures of those that are not scored; a task must have them


def main() -> None:
    """Measures, prints, and writes results/images.json."""
    on_gpu = device().type == "cuda"
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pictures", type=int, default=1536 if on_gpu else 64)
    arguments.add_argument("--batch-size", type=int, default=128 if on_gpu else 32)
    arguments.add_argument("--repetitions", type=int, default=20 if on_gpu else 12, help="of each; the medians count")
    options = arguments.parse_args()
    if not on_gpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        suite = Suite(["pictures"], [prepared(Path(name), options.pictures)], [random_head()])
        backbone = random_clip(Path(name) / "model")
        seconds = measured(suite, backbone, options.batch_size, options.repetitions)
    rows = [compare(kind, seconds, options.pictures) for kind in ("first", "further")]
    for row in rows:
        print(f"{row['model']} model: {row['pictures_a_second']:.1f} pictures/s, {verdict(row['of_bare'])} of bare")
    facts = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "precision": str(precision())}
    write("images", {**facts, "threads": torch.get_num_threads(), **vars(options), "models": rows})


def compare(kind: str, seconds: list[dict[str, Seconds]], pictures: int) -> dict[str, Any]:
    """Pictures a second of the first model or a further one, beside the bare loop's."""
    wall, processor = ([found["bare"][i] / found[kind][i] for found in seconds] for i in range(2))
    speed = {name: pictures / statistics.median(found[name][0] for found in seconds) for name in (kind, "bare")}
    return {
        **{"model": kind, "pictures_a_second": speed[kind], "bare_pictures_a_second": speed["bare"]},
        **{"of_bare": bound(statistics.median(wall), at_least=AT_LEAST), "ratios": wall},
        "of_bare_processor_time": statistics.median(processor),
    }


def measured(suite: Suite, backbone: Backbone, batch_size: int, repetitions: int) -> list[dict[str, Seconds]]:
    """What the first model takes, a further one, and the bare loop, in every repetition."""
    weights = {name: parameter.detach() for name, parameter in backbone.module.named_parameters()}
    bare(backbone, weights, suite.heads[0], [on_device(backbone.collate(suite.data[0].inputs("train")[:]))])
    return [once(suite, backbone, weights, batch_size) for _ in range(repetitions)]


def once(suite: Suite, backbone: Backbone, weights: Mapping[str, Tensor], batch_size: int) -> dict[str, Seconds]:
    """Each, one after the other."""

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


def timed(work: Callable[[], Result]) -> tuple[Result, Seconds]:
    """The result, and the seconds until the work is done, on a GPU too."""
    began, spent = time.perf_counter(), time.process_time()
    result = work()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return result, (time.perf_counter() - began, time.process_time() - spent)


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
