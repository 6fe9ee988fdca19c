"""The model card of a merged model: the recipe, and the hashes of what went into it."""

import hashlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import yaml

from fusion.catalogue import Recipe, paper, title
from fusion.pipelines import parts

BLOCK = 1 << 22  # bytes


class Facts(NamedTuple):
    """What a card says beside the recipe."""

    pretrained: Path
    finetuned: Sequence[Path]
    files: Sequence[Path]  # all that hold weights, of all inputs
    seed: int
    device: str  # its name: every kind has draws of its own
    command: Sequence[str]
    output: str  # tensors, parameters, bytes, types
    library: str
    warnings: Sequence[str] = ()  # what was odd about the inputs


@contextmanager
def hashing(files: Sequence[Path]) -> Iterator[Callable[[], dict[Path, str]]]:
    """A function that waits for the SHA-256 of each file; two threads compute them meanwhile.

    About 1 s per 1.5 GB and thread. They stop at once when the block is left early.
    """
    stop = Event()
    with ThreadPoolExecutor(2) as pool:
        found = {file: pool.submit(_sha256, file, stop) for file in dict.fromkeys(files)}
        try:
            yield lambda: {file: future.result() for file, future in found.items()}
        finally:
            stop.set()


def card(recipe: Recipe, facts: Facts, hashes: dict[Path, str]) -> str:
    """The card as Markdown with YAML front matter, as model hubs read it."""
    front = {"library_name": facts.library, "base_model": [model_name(facts.pretrained)], "tags": ["merge"]}
    names = ", ".join(f"`{model_name(path)}`" for path in facts.finetuned)
    sections = [
        "---\n" + yaml.safe_dump(front, sort_keys=False).strip() + "\n---",
        f"# {recipe.pipeline} of {len(facts.finetuned)} models",
        f"{names}, fine-tuned from `{model_name(facts.pretrained)}` and merged. {facts.output}",
        "## Method",
        "\n".join(f"- **{part}**: {title(part)} {paper(part)}".rstrip() for part in parts(recipe.pipeline)),
        _table(("hyper-parameter", "value"), [*recipe.values.items(), ("seed", facts.seed), ("device", facts.device)]),
        *(["## Warnings", "\n".join(f"- {line}" for line in facts.warnings)] if facts.warnings else []),
        "## Inputs",
        _table(("file", "bytes", "sha256"), [(file, file.stat().st_size, hashes[file]) for file in hashes]),
        "## Made by",
        f"```\n{shlex.join(facts.command)}\n```",
        f"fusion-suite {release()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    ]
    return "\n\n".join(sections) + "\n"


def model_name(path: Path) -> str:
    """A folder's or file's name; 'owner/name' of a snapshot in the cache of a model hub."""
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", f"{path.absolute()}/")
    return f"{cached[1]}/{cached[2]}" if cached else path.absolute().name.removesuffix(".safetensors")


def release() -> str:
    """The version of this package."""
    try:
        return version("fusion-suite")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _sha256(path: Path, stop: Event) -> str:
    found, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while (count := file.readinto(buffer)) and not stop.is_set():
            found.update(buffer[:count])
    return found.hexdigest()
