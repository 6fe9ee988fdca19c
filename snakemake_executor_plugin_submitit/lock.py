"""A lock that one process holds, and that ends with it, however it ends."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil

NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}  # Lustre without -o flock, NFS


class Lock:
    """Held from its creation to `close`. Raises RuntimeError naming the process that holds it.

    It is one of the kernel (flock). A file system that has none gets a file of its own instead, which says who holds
    it; one that a process of this host left behind when it was killed is taken over.
    """

    def __init__(self, path: Path) -> None:
        self._owner: Path | None = None
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            raise RuntimeError(_held(self._file.read().strip() or "another process", path.parent)) from error
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            self._owner = _take(path.with_suffix(".owner"))
        else:
            words = _words(path.with_suffix(".owner"))
            if words and not _is_dead(words):  # of a host that has no flock
                raise RuntimeError(_held(words, path.parent))
        self._file.truncate(0)
        self._file.write(f"{_me()}\n")
        self._file.flush()

    def close(self) -> None:
        """Lets another process have it."""
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)
        self._file.close()


def _take(path: Path) -> Path:
    """The file, made by this process and no other."""
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(f"{_me()} since {_begin(os.getpid())}\n")
            return path
        except FileExistsError:
            words = _words(path)
            if not _is_dead(words):
                hint = f"; where it runs no more, remove {path}, and the same command goes on"
                raise RuntimeError(_held(words or "another process", path.parent) + hint) from None
            _remove(path, words)


def _remove(path: Path, words: str) -> None:
    """Removes the file if it still has these words: another process that found them may have the lock by now."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if _words(aside) != words:
            os.link(aside, path)
        aside.unlink()


def _words(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _is_dead(words: str) -> bool:
    """Whether the process that wrote the words was of this host, and runs no more."""
    who, _, begin = words.partition(" since ")
    if not begin or not who.endswith(f" on {socket.gethostname()}"):
        return False
    return _begin(int(who.split()[1])) != begin


def _begin(pid: int) -> str:
    """When a process of this host began; '' where there is none."""
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _held(who: str, folder: Path) -> str:
    return f"{who} submits from {folder}"
