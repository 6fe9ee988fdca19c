"""What a figure was measured on, and how: time and anonymous memory in a process of its own."""

import json
import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str | int]:
    """Processor, cores, memory and the versions that matter."""
    cpu = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory[0] / 2**20) if memory else 0,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "peft", "snakemake")},
    }


def write(name: str, figures: Mapping[str, Any]) -> None:
    """Writes results/<name>.json: the machine and the figures."""
    RESULTS.mkdir(exist_ok=True)
    write_to(RESULTS / f"{name}.json", figures)


def write_to(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes a file elsewhere: the machine and the figures."""
    text = json.dumps({"machine": machine(), **figures}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


class PeakMemory:
    """The peak of this process's anonymous memory within a `with`, in bytes beyond that at its start.

    Pages of mapped files are not counted: Linux drops them when memory is short.
    """

    def __enter__(self) -> "PeakMemory":
        self._over, self.peak, self._start = threading.Event(), 0, _anonymous()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.peak = max(self.peak, _anonymous() - self._start)


def in_subprocess(measure: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
    """What measure(*arguments) returns in a process of its own, with the imports done and nothing else in memory.

    Raises multiprocessing.TimeoutError when that takes more than `seconds`; the process is then ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "safetensors.torch", "fusion.checkpoint", "fusion.methods"])
    with context.Pool(1) as pool:
        return pool.apply_async(measure, arguments).get(seconds)


def bound(value: float, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
    """A figure beside its target."""
    limit = {"at_most": at_most} if at_least is None else {"at_least": at_least}
    met = value >= at_least if at_least is not None else at_most is None or value <= at_most
    return {"value": value, **limit, "met": met}


def verdict(figure: Mapping[str, Any]) -> str:
    """A figure in words: '4.20 (at most 3, missed)'."""
    return told(figure, ".2f")


def told(figure: Mapping[str, Any], form: str = ".3g") -> str:
    """The same with three digits, for figures of any size, or in another form."""
    name = "at_least" if "at_least" in figure else "at_most"
    value = f"{figure['value']:{form}}"
    if figure[name] is None:
        return value
    return f"{value} ({name.replace('_', ' ')} {figure[name]:g}, {'met' if figure['met'] else 'missed'})"


def _anonymous() -> int:
    """Bytes of anonymous memory of this process now."""
    line = next(line for line in _lines("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def _version(package: str) -> str:
    """The version of a package; a machine that measures one thing need not have what the others need."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
