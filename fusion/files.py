"""Walking folders of data: links are followed, and what an operating system leaves behind is passed over."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}  # in lower case, beside all names with a dot

Kind = Literal["file", "hidden or system file", "link in a circle", "broken link"]


class Found(NamedTuple):
    """One entry below a folder: its path relative to that folder, with '/' between names, and what it is."""

    path: str
    kind: Kind
    entry: os.DirEntry[str]


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or made by an operating system: '._a.png', 'Thumbs.db'."""
    return name.startswith(".") or name.lower() in SYSTEM


def walk(folder: str | Path) -> Iterator[Found]:
    """Every file below a folder, in the order of their names; linked files and folders are followed.

    What is not to be read comes too, by its kind, so that it can be counted: a hidden or system file or folder (which
    is not entered), a link to a folder that it lies in, a link to nothing.
    """
    return _walk(str(folder), "", (_identity(os.stat(folder)),))


def _walk(folder: str, start: str, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = start + entry.name
        if is_system(entry.name):
            yield Found(path, "hidden or system file", entry)
        elif entry.is_file():
            yield Found(path, "file", entry)
        elif entry.is_dir():
            # a folder that is no link has no way back up
            identity = _identity(entry.stat())
            if entry.is_symlink() and identity in above:
                yield Found(path, "link in a circle", entry)
            else:
                yield from _walk(entry.path, path + "/", (*above, identity))
        elif entry.is_symlink():
            yield Found(path, "broken link", entry)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
