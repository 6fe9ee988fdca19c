"""Prepared tasks with corrupted test pictures."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, disable_progress_bars, load_from_disk

from fusion.artifacts import new_folder, share, write_json
from fusion.data.corruptions import corrupted
from fusion.data.images import Picture
from fusion.data.tasks import TaskData
from fusion.job import Job, progress

AT_ONCE = 16  # pictures in memory
SHARD = "100MB"  # a file: one is in memory while it is written


def corrupt_task(job: Job) -> None:
    """Writes input `data`, a prepared task of pictures, with its test pictures corrupted, to the folder output `data`.

    settings: corruption and severity, which info.json then also has. Train and val are those of the input. The
    fingerprint is the SHA-256 of the input's and of every corrupted picture's.
    """
    settings = job.params["settings"]
    source = TaskData(Path(job.input["data"]))
    disable_progress_bars()  # they are drawn into the log
    with new_folder(job.output["data"]) as folder:
        # hidden files are Snakemake's, which it does write to again
        ignored = shutil.ignore_patterns("test", ".*")
        shutil.copytree(source.folder, folder, copy_function=share, ignore=ignored, dirs_exist_ok=True)
        _corrupt(source, folder, **settings)
        facts = {"fingerprint": _fingerprint(source, TaskData(folder))}
        write_json(folder / "info.json", source.info | settings | facts)
    progress(f"{source.info['name']}: test pictures under {settings['corruption']}, severity {settings['severity']}")


def _corrupt(source: TaskData, folder: Path, corruption: str, severity: int) -> None:
    data = load_from_disk(str(source.folder / "test"))
    assert isinstance(data, Dataset)

    def one(row: dict[str, Any], i: int) -> dict[str, Any]:
        picture = Picture(f"{source.folder}/test/{i}", row["image"]["bytes"])
        return {"image": {"bytes": corrupted(picture, corruption, severity), "path": None}}

    cache = folder / "test.arrow"  # unless named, it is made inside the input's folder
    found = data.cast_column("image", Image(decode=False)).map(
        one,
        with_indices=True,
        writer_batch_size=AT_ONCE,
        load_from_cache_file=False,
        cache_file_name=str(cache),
        new_fingerprint=f"{corruption}-{severity}",  # found otherwise by pickling the function
    )
    found.cast_column("image", Image()).save_to_disk(str(folder / "test"), max_shard_size=SHARD)
    cache.unlink()


def _fingerprint(source: TaskData, found: TaskData) -> str:
    seen = hashlib.sha256(source.info["fingerprint"].encode())
    for picture in found.inputs("test"):
        seen.update(hashlib.sha256(picture.content).digest())
    return seen.hexdigest()
