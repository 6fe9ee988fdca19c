"""How the jobs of a run share this machine: Snakemake counts what each takes, and each is lent its GPUs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .cards import Cards, share
from .machine import SHARE, gpu_memory, visible
from .report import has_stage


class Sharing:
    """The cores, the memory and the GPUs of this machine; per_gpu: how many jobs may use a GPU that do not say more.

    say: is told in a line what is shared out, and what is not as a rule says.
    """

    def __init__(self, workflow: Any, per_gpu: int, say: Callable[[str], None]) -> None:
        self._workflow, self._per_gpu, self._say = workflow, per_gpu, say
        self._cards = Cards(visible())
        self._gpu_memory = gpu_memory(self._cards.names)
        self._memory = getattr(workflow.global_resources.get("mem_mb"), "value", None)  # MB
        self._told: set[str] = set()

    def begin(self, jobs: Sequence[Any]) -> None:
        """Lets Snakemake count the GPUs of the jobs, so that it starts as many as fit."""
        users = [job for job in jobs if gpus(job)] if self._cards.names else []
        for job in users:
            job.add_aux_resource(SHARE, gpus(job) * self._share(job))
        if jobs:
            self._tell_what_there_is(bool(users))

    @contextmanager
    def lent(self, job: Any) -> Iterator[tuple[int, dict[str, str]]]:
        """The number of GPUs of a job and its environment; waits until they are free. ValueError where it cannot be."""
        count = gpus(job)
        with self._cards.lent(count, self._share(job)) as environment:
            yield count, environment

    def tell_of(self, job: Any) -> None:
        """Says once a rule where a job asks for more than there is."""
        name, wanted = job.name, job.resources.get("mem_mb") or 0
        if self._memory and isinstance(wanted, int) and wanted >= self._memory:
            text = f"jobs of {name} ask for all of the {self._memory} MB of memory here, or for more (mem_mb)"
            self._once(f"{text}: only jobs that ask for none run beside them")
        if self._gpu_memory and (needed := _gpu_mem_mb(job)) > self._gpu_memory:
            text = f"jobs of {name} ask for {needed} MB of a GPU (gpu_mem_mb), which has {self._gpu_memory}"
            self._once(f"{text}: each has one for itself")

    def _share(self, job: Any) -> int:
        return share(_gpu_mem_mb(job), self._gpu_memory, self._per_gpu)

    def _tell_what_there_is(self, are_used: bool) -> None:
        count = len(self._cards.names)
        if count and not are_used:
            self._say(f"» no job asks for one of {count} GPUs (resources: gpus); all use CPUs")
        size = f" of {self._gpu_memory} MB" if self._gpu_memory else ""
        parts = [f"{self._workflow.cores} cores"]
        parts += [f"{self._memory} MB of memory (mem_mb)"] * (self._memory is not None)
        parts += [f"{count} GPU{'s' if count > 1 else ''}{size}"] * are_used
        self._say(f"» jobs share {', '.join(parts)}")

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(f"» {text}")


def gpus(job: Any) -> int:
    """How many GPUs a job of this run asks for."""
    if not has_stage(job) or not (job.resources.get("gpus") or job.resources.get("gpu") or job.resources.get("gres")):
        return 0
    from snakemake_executor_plugin_submitit import gpus  # all ways in which a profile for a cluster may say so

    return gpus.count(job.resources)


def _gpu_mem_mb(job: Any) -> int:
    """MB of a GPU that the job asks for; 0 where it says nothing, or cannot before its inputs are there."""
    needed = job.resources.get("gpu_mem_mb")
    return needed if isinstance(needed, int) else 0
