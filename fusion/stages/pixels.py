"""Pictures prepared once: decoded, resized and cropped as a model takes them, for all that reads them."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion.artifacts import new_folder, read_json, remove_unfinished, share, write_json
from fusion.backbones.pixels import Pixels
from fusion.data.tasks import TaskData
from fusion.job import Job, progress

BLOCK = 256  # pictures in memory, and lost at most when the job is killed
FILE, INFO = "pixels.npy", "info.json"


def prepare_pixels(job: Job) -> None:
    """Writes the first `examples` pictures (all if None) of a split of input `data` to the folder output `pixels`.

    As the model in input `model` takes them: pixels.npy, (N, 3, H, W) uint8, and info.json, which says of what and how.
    Where another model's folder beside the output's holds the same, its file is shared. Else a file beside the output
    grows block by block, and a job that was killed goes on with it.
    """
    settings, output, began = job.params["settings"], Path(job.output["pixels"]), time.monotonic()
    transform, task = Pixels(job.input["model"], settings["image_size"]), TaskData(Path(job.input["data"]))
    pictures = task.inputs(settings["split"], settings["examples"])
    info = {"task": task.info["name"], "fingerprint": task.info["fingerprint"], "transform": transform.transform}
    info |= {"split": settings["split"], "examples": settings["examples"], "code": job.params["code"]}
    others = output.parent.parent.glob(f"*/{output.name}/{INFO}")
    same = next((other.with_name(FILE) for other in others if read_json(other) == info), None)
    grown = Path(f"{output}.partial.npy")
    kept = len(pictures) if same else _grow(grown, transform, pictures, info)
    with new_folder(output) as folder:
        share(same or grown, folder / FILE)
        write_json(folder / INFO, info)
        size = (folder / FILE).stat().st_size
    for path in (grown, _record(grown)):
        path.unlink(missing_ok=True)
    what = f"pixels of {task.folder.name}, {settings['split']}: {len(pictures):,} pictures, {kept:,} of them known"
    progress(f"{what}, {size:,} bytes, {time.monotonic() - began:.1f} s")


def _grow(path: Path, transform: Pixels, pictures: Sequence[Any], info: dict[str, Any]) -> int:
    """Adds to the file what it lacks of the pictures; how many it held before."""
    done = kept = _held(path, info)
    row = transform(pictures[:1])[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), *row.shape)}
    with open(path, "r+b" if kept else "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.seek(kept * row.nbytes, os.SEEK_CUR))
        while done < len(pictures):
            block = transform(pictures[done : done + BLOCK])
            file.write(block.numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())  # what the record says is there after a power cut, too
            done += len(block)
            write_json(_record(path), {"info": info, "pictures": done})
    return kept


def _held(path: Path, info: dict[str, Any]) -> int:
    """How many of these pictures a killed job left in the file."""
    remove_unfinished(_record(path))
    if not path.is_file() or not _record(path).is_file():
        return 0
    record = read_json(_record(path))
    return record["pictures"] if record["info"] == info else 0


def _record(path: Path) -> Path:
    return path.with_suffix(".json")
