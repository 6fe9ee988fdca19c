"""How a job ended: the file that it leaves, and what says that it began."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fusion.artifacts import new_file

VERSION = 1


class Damaged(Exception):
    """The file of an outcome is there and says nothing; the text names it."""


@dataclass(frozen=True)
class Outcome:
    """What a job says of its end: the error, empty where there was none, and what it took."""

    error: str
    host: str
    seconds: float
    max_rss_mb: float
    cpu_seconds: float


def place(folder: Path, task: int, index: int) -> Path:
    """Where the job number `index` of a task of an array leaves its outcome."""
    return folder / f"{task}.{index}.json"


def started(outcome: Path) -> Path:
    """The file that says that the job has begun, and on which host."""
    return outcome.with_suffix(".started")


def write(path: str | Path, outcome: Outcome) -> None:
    """Writes the file at once or not at all."""
    with new_file(path) as file:
        file.write_text(json.dumps({"version": VERSION, **asdict(outcome)}), encoding="utf-8")


def read(path: Path) -> Outcome | None:
    """What the file says; None where there is none. Raises Damaged where it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
        version = found.pop("version")
        if version != VERSION:
            raise ValueError(f"version {version}, expected {VERSION}")
        return Outcome(**found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def read_all(paths: Iterable[Path]) -> tuple[dict[Path, Outcome], dict[Path, str]]:
    """The outcomes that can be read, and the folders that cannot be listed now, each with the reason.

    One listing a folder, which also renews what a network file system remembers.
    """
    named: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        named[path.parent].append(path)
    found: dict[Path, Outcome] = {}
    away: dict[Path, str] = {}
    for folder, files in named.items():
        try:
            names = set(os.listdir(folder))
        except FileNotFoundError:
            continue
        except OSError as error:
            away[folder] = str(error)
            continue
        for file in files:
            with suppress(Damaged):
                if file.name in names and (ended := read(file)) is not None:
                    found[file] = ended
    return found, away
