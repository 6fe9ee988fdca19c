"""What source files hold, as far as results depend on it: compared before a run, whatever the clock says.

A file of at most SMALL bytes counts by its content, and so do the files of a folder of pictures that has FEW files of
as many bytes in all. Larger ones count by size and the time of the last change, unless a run asks for all contents
(`hash_sources`); of each folder in a large one the first file counts by its content, so that folders which change their
names are told apart where all files have one size and time. Hidden and system files do not count (`fusion.files`).
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fusion.artifacts import sha256
from fusion.files import walk

SMALL = 64 << 20  # bytes, of which reading takes about 0.05 s
PICTURE = 1 << 20  # bytes
FEW = 5_000  # files, of which opening takes about 0.2 s


def look(paths: Iterable[str], full: bool = False) -> dict[str, Any]:
    """What is at the paths, files or folders: {paths, full, files: their number, digest}.

    full: read every file, however large, and those of folders; `quick` is then the digest without that. ValueError
    naming a path that is not there.
    """
    paths = list(paths)
    entries = listing(paths, full)
    found = hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]
    quick = {"quick": look(paths)["digest"]} if full else {}
    return {"paths": paths, "full": full, "files": len(entries), "digest": found} | quick


def same(kept: dict[str, Any], seen: dict[str, Any]) -> bool:
    """Whether two looks saw the same, as far as both can tell: one that read all, and one that did not, by times."""
    if kept["full"] == seen["full"]:
        return kept["digest"] == seen["digest"]
    return kept.get("quick", kept["digest"]) == seen.get("quick", seen["digest"])


def listing(paths: Iterable[str], full: bool) -> list[str]:
    """A line for every file at the paths, of what `look` makes its digest of."""
    return [entry for path in paths for entry in _entries(path, full)]


def commits(refs: Iterable[str]) -> dict[str, str | None]:
    """The commit that each file of refs in a hub's cache names, by the end of its path; None where it is not there."""
    paths = {"/".join(Path(ref).parts[-3:]): Path(ref) for ref in refs}
    return {name: path.read_text(encoding="utf-8").strip() if path.is_file() else None for name, path in paths.items()}


def require_same(seen: dict[str, Any], when: str) -> None:
    """Raise ValueError where what is at the paths is no longer what `look` saw."""
    now = look(seen["paths"], seen["full"])
    if now["digest"] != seen["digest"]:
        raise ValueError(f"the files of {', '.join(seen['paths'][:3])} changed {when}; run again")


def _entries(path: str, full: bool) -> Iterator[str]:
    """Path, size, and time or content of every file at a path; of one file without its folder."""
    place = Path(path)
    if place.is_dir():
        files = [(found.path, found.entry.path, found.entry.stat()) for found in walk(place) if found.kind == "file"]
    elif place.is_file():
        files = [(place.name, path, place.stat())]
    else:
        raise ValueError(f"no file or folder {path}")
    read = full or (len(files) <= FEW and sum(status.st_size for *_, status in files) <= SMALL)
    folders: set[str] = set()
    for name, file, status in files:
        folder, slash, _ = name.partition("/")
        first = slash and folder not in folders and status.st_size <= PICTURE
        folders.add(folder)
        yield f"{name!a} {status.st_size} {sha256(file) if read or first else status.st_mtime_ns}"
