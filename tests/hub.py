"""The hub's own cache, as its library lays it out, with models and data sets that are made on the spot."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PIL
from safetensors.torch import save_file


def snapshot(home: Path, kind: str, name: str, files: Mapping[str, bytes], revision: str | None = None) -> Path:
    """Writes a repository (`models` or `datasets`) to the cache below `home`: refs, blobs, and a snapshot of links.

    Returns the snapshot's folder.
    """
    root = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    revision = revision or hashlib.sha1(name.encode()).hexdigest()
    for folder in ("refs", "blobs", f"snapshots/{revision}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs/main").write_text(revision)
    for number, (file, content) in enumerate(sorted(files.items())):
        (root / f"blobs/{number:040}").write_bytes(content)
        link = root / f"snapshots/{revision}" / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / f"blobs/{number:040}")
    return root / f"snapshots/{revision}"


def model(home: Path, name: str, folder: Path) -> str:
    """Writes the files of a model's folder to the cache; returns the commit."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return snapshot(home, "models", name, files).name


def open_clip_model(home: Path, architecture: str) -> None:
    """Writes random weights of an architecture of open_clip to where it looks for those of OpenAI."""
    settings: Any = open_clip.get_pretrained_cfg(architecture, "openai")
    torch.manual_seed(0)
    state = open_clip.create_model(architecture).state_dict()
    folder = snapshot(home, "models", settings["hf_hub"].rstrip("/"), {})
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "open_clip_model.safetensors")


def data_set(home: Path, source: Mapping[str, Any], classes: int, splits: Mapping[str, int]) -> None:
    """Writes the data set of a task's source to the cache: noise in parquet files, so many pictures of a class."""
    rng = np.random.default_rng(0)
    image, label = (source["format"].get(column, column) for column in ("image", "label"))
    features, files = Features({image: Image(), label: ClassLabel(names=[str(i) for i in range(classes)])}), {}
    for split, each in splits.items():
        labels = [number for number in range(classes) for _ in range(each)]
        images = [{"bytes": _png(rng), "path": None} for _ in labels]
        table = io.BytesIO()
        Dataset.from_dict({image: images, label: labels}, features=features).to_parquet(table)
        files[f"data/{split}-00000-of-00001.parquet"] = table.getvalue()
    paths = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    described = json.dumps([{"config_name": source.get("config") or "default", "data_files": paths}])
    files["README.md"] = f"---\nconfigs: {described}\n---\n".encode()
    snapshot(home, "datasets", source["hub"], files, source.get("revision"))


def _png(rng: np.random.Generator) -> bytes:
    content = io.BytesIO()
    PIL.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()
