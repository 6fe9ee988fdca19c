"""What a stage receives, wherever it runs: in this process, in a warm worker or on a cluster node."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

LESS = (  # memory of a GPU
    "lower the batch_size of what ran here (finetune, fuse, evaluate in the configuration), give it a larger GPU, or "
    "set FUSION_DEVICE=cpu"
)
QUEUED, MINUTES = "FUSION_QUEUE_SECONDS", "FUSION_ASKED_MINUTES"  # set by what submits jobs


@dataclass(frozen=True)
class Job:
    """One job of the workflow; paths are relative to the working directory.

    A named input of several files is a list, of one file a string. `params` are plain Python objects.
    """

    stage: str
    input: dict[str, Any]
    output: dict[str, str]
    params: dict[str, Any]
    wildcards: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    gpus: int = 0  # that the job was given, by a scheduler that gives any
    log: str = ""

    def paths(self, name: str) -> list[str]:
        """The files of a named input as a list, were there one, several or none."""
        found = self.input.get(name, [])
        return [found] if isinstance(found, str) else list(found)

    def optional(self, name: str) -> Path | None:
        """The file of a named input that may be absent."""
        return next((Path(path) for path in self.paths(name)), None)


def stage_function(name: str) -> Callable[[Job], None]:
    """The function that `module:function` names; ValueError if it cannot be one."""
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"stage {name!r}: expected 'module:function' (in the rule's params)")
    return getattr(import_module(module), function)


def run(job: Job) -> None:
    """Runs the job's stage in this process, and writes beside its outputs what they were made from.

    RuntimeError where the job was given a GPU and sees none; ValueError where its sources are not those that were
    planned with, or changed while they were read. MemoryError where a GPU's does not suffice.
    """
    record, look = import_module("fusion.record"), import_module("fusion.look")
    stage = stage_function(job.stage)
    if job.gpus:
        import_module("fusion.device").require_gpu(job.gpus)
    inputs, sources = record.made_from(job), job.params.get("sources")
    record.forget(job)
    if sources:
        look.require_same(sources, "since the run was planned")
    try:
        stage(job)
    except RuntimeError as error:  # torch's own subclass is not at hand where a stage needs no torch
        if type(error).__name__ == "OutOfMemoryError":
            raise import_module("fusion.device").out_of_memory(error, LESS) from error
        raise
    if sources:
        look.require_same(sources, "while they were read")
    record.write(job, inputs)


def queue_seconds() -> float:
    """How long this job waited before it began; 0 where nothing was waited for."""
    return float(os.environ.get(QUEUED, 0))


def progress(text: str) -> None:
    """Prints a line that reaches the terminal from any worker; all else that a stage prints stays in its log."""
    print(f"» {text}", flush=True)
