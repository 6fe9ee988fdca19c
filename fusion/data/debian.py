"""Debian packages as archives: fetched by apt without root, unpacked in memory; nothing of them is installed or run."""

import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_package(path: Path, package: str, version: str) -> bool:
    """Whether the file has the name that apt gives this version: package_version_architecture.deb."""
    return path.suffix == ".deb" and path.name.startswith(f"{package}_{version.replace(':', '%3a')}_")


def download(package: str, version: str, scratch: Path, folder: Path) -> Path:
    """The path in `scratch` of the package as apt has it; ValueError if it cannot be had.

    folder: where a user may put the file by hand, for the message.
    """
    arguments = ["apt-get", "download", f"{package}={version}"]
    said = _run(arguments, scratch)
    packages = list(scratch.glob("*.deb"))
    if len(packages) == 1 and not said:
        return packages[0]
    raise ValueError(
        f"could not fetch {package}={version}: apt-get said {said!r}. Are its lists there (apt-get update), and of a "
        f"release with this version? The .deb can also be put into {folder} by hand, or another source be given "
        f"(config/tasks.yaml). Tried: {' '.join(arguments)}"
    )


def find(archive: Path, member: str) -> tuple[bytes | None, list[str]]:
    """The bytes of a file in the package, or None, and the names of what was passed on the way to it.

    ValueError if the package is damaged, or dpkg-deb is not there to open it.
    """
    names: list[str] = []
    with _files(archive) as files:
        for entry in files:
            names.append(entry.name.removeprefix("./"))
            content = files.extractfile(entry) if entry.isreg() and names[-1] == member else None
            if content is not None:
                return content.read(), names
    return None, names


@contextmanager
def _files(archive: Path) -> Iterator[tarfile.TarFile]:
    """The package's files as a stream of tar."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    try:
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking,
            tarfile.open(fileobj=unpacking.stdout, mode="r|") as files,
        ):
            yield files
    except FileNotFoundError as error:
        raise ValueError(f"cannot open {archive}: dpkg-deb is not on the PATH; give another source") from error
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive} is cut short or damaged ({error}); delete it and run again") from error


def _run(arguments: list[str], folder: Path) -> str:
    """What went wrong, in the program's last words; '' if nothing did."""
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        return f"{arguments[0]} is not on the PATH"
    print(done.stdout, done.stderr, sep="\n")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit status {done.returncode}") if done.returncode else ""
