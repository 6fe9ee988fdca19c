"""What a result was made from, written beside it as `.NAME.made.json`, and whether that is still so.

A record holds hashes of the stage's parameters (settings, code, source files) and the identities of the inputs'
records; its own identity is the hash of all that. So results tell by themselves what they are of, in another folder, on
another machine, and without what Snakemake remembers in `.snakemake`.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fusion import look
from fusion.artifacts import digest, new_file, read_json, remove_unfinished, write_json
from fusion.files import walk
from fusion.job import Job

VERSION = 1  # of a record: one of another version counts as none
KEYS = {"made", "content", "commits"}
SMALL = 1 << 20  # bytes of a file of an output that is hashed whole: tables, scores, heads, facts beside weights
COPIES = {"pixels"}  # inputs that hold only what the others say: may be deleted, and are no part of a record
PIECE = 1 << 16  # bytes from the middle of a larger one: two trained models differ there too


def place(output: str | Path) -> Path:
    """The record of an output file or folder."""
    path = Path(output)
    return path.with_name(f".{path.name}.made.json")


def read(output: str | Path) -> dict[str, Any]:
    """The record of a result; empty where there is none that can be read."""
    try:
        found = read_json(place(output))
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and found.get("version") == VERSION and found.keys() >= KEYS
    return found if whole else {}


def identity(output: str | Path) -> str:
    """What the record of a result says that it was made from; '' where there is none."""
    return read(output).get("made", "")


def sources(output: str | Path) -> dict[str, Any] | None:
    """What the files held that a result was made from (`fusion.look`); None where that is not known."""
    return read(output).get("sources") if Path(output).exists() else None


def new_files(output: str | Path, seen: dict[str, Any]) -> int:
    """How many of the files that were seen are not as they were when the output was made; all where none was."""
    kept = sources(output)
    if kept and look.same(kept, seen):
        return 0
    return len(_unknown(output, seen["paths"], seen["full"]))


def changed(output: str | Path, paths: Iterable[str]) -> list[str]:
    """Those of the source paths that are there, and do not hold what the output was made from."""
    full = bool((sources(output) or {}).get("full"))
    return [path for path in paths if Path(path).exists() and _unknown(output, [path], full)]


def _unknown(output: str | Path, paths: Iterable[str], full: bool) -> set[str]:
    known = _listing(output).read_text(encoding="utf-8").split("\n") if _listing(output).is_file() else []
    return set(look.listing(paths, full)) - set(known)


def _listing(output: str | Path) -> Path:
    return place(output).with_suffix(".files")


def forget(job: Job) -> None:
    """Remove the records of the job's outputs, which are about to be made anew, and what a killed job left of both."""
    for output in job.output.values():
        place(output).unlink(missing_ok=True)
        for path in (Path(output), place(output), _listing(output)):
            remove_unfinished(path)


def write(job: Job, inputs: dict[str, list[str]]) -> None:
    """Write the record of every output of a job that ended well; inputs: what `made_from` said when it began."""
    params = _params(job)
    found = {"version": VERSION, "stage": job.stage, "params": params, "inputs": inputs}
    found["commits"] = look.commits(job.params.get("sources", {}).get("refs", ()))  # those that were read just now
    for output in job.output.values():
        if seen := job.params.get("sources"):
            _write_sources(output, found, seen)
        found["content"] = _content(output)
        write_json(place(output), found | {"made": _made(job, params, inputs, found["commits"])})


def remember(job: Job) -> None:
    """Let the records of the job's outputs, which are current, know what was seen of the sources just now.

    So what was recorded by time before is known by content, once a run has read all; what was made stays what it is.
    """
    seen = job.params.get("sources", {})
    for output in job.output.values():
        kept = sources(output)
        if seen and "gone" not in seen and kept != seen and (seen["full"] or not kept or not kept["full"]):
            found = read(output)
            _write_sources(output, found, seen)
            write_json(place(output), found)


def _write_sources(output: str | Path, found: dict[str, Any], seen: dict[str, Any]) -> None:
    found["sources"] = seen
    with new_file(_listing(output)) as temporary:
        temporary.write_text("\n".join(look.listing(seen["paths"], seen["full"])), encoding="utf-8")


def made_from(job: Job, identity: Callable[[str], str] = identity) -> dict[str, list[str]]:
    """The identities of the inputs by name, without those of copies, and of files that have no record: sources."""
    inputs = {name: paths for name, paths in job.input.items() if name not in COPIES}
    named = {name: [identity(path) for path in _list(paths)] for name, paths in inputs.items()}
    return {name: found for name, found in named.items() if any(found)}


def is_current(job: Job, identity: Callable[[str], str] = identity) -> bool:
    """Whether every output that is there was made from the parameters and inputs that the job has now.

    identity: what reads a record's; one that remembers saves a plan of many jobs most of its reading.
    """
    there = [output for output in job.output.values() if Path(output).exists()]
    inputs, now = made_from(job, identity), look.commits(job.params.get("sources", {}).get("refs", ()))
    for output in there:
        kept = read(output)
        # a hub's cache that is gone, or was never there, says nothing against what was read
        commits = {name: commit or kept.get("commits", {}).get(name) for name, commit in now.items()}
        params = _params(job)
        if "sources" in kept and "sources" in params and look.same(kept["sources"], job.params["sources"]):
            params["sources"] = kept["params"]["sources"]  # which may come of another kind of look
        if kept.get("made") != _made(job, params, inputs, commits) or kept.get("content") != _content(output):
            return False
    return True


def _made(job: Job, params: dict[str, str], inputs: dict[str, list[str]], commits: dict[str, str | None]) -> str:
    return digest([VERSION, job.stage, params, inputs, sorted(map(str, commits.values()))])


def _params(job: Job) -> dict[str, str]:
    """A hash of each parameter; of source files what they hold, wherever they are."""
    values = {name: value["digest"] if name == "sources" else value for name, value in job.params.items()}
    return {name: digest(value) for name, value in sorted(values.items())}


def _content(output: str | Path) -> str:
    """What tells an output that was cut short or exchanged: the names, sizes and hashes of its files.

    What an operating system leaves in a folder does not count.
    """
    path = Path(output)
    if path.is_dir():
        return digest([(found.path, _hash(found.entry.path)) for found in walk(path) if found.kind == "file"])
    return _hash(path)


def _hash(path: str | Path) -> str:
    """The hash of a file, of a large one that of its size and a piece."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= SMALL:
            return hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(size // 2)
        return f"{size} {hashlib.sha256(file.read(PIECE)).hexdigest()}"


def _list(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)
