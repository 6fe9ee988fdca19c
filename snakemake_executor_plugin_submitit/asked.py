"""What `snakemake -n` says of a run: its jobs by rule, and what each of them will ask SLURM for."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from snakemake.cli import parse_args
from snakemake.dag import DAG
from snakemake.settings.enums import Quietness
from tabulate import tabulate

from .resources import RUNTIME


def show_in_dry_runs(said: Callable[[], Iterable[str]] = tuple) -> None:
    """Let dry runs add to Snakemake's table of jobs what they will ask for, and show it once where no jobs are listed.

    said: lines to add below. Snakemake has no setting for either, so its answer is replaced.
    """
    assert hasattr(DAG, "stats"), "Snakemake has no DAG.stats any more"
    stats, shown = DAG.stats, []

    def answer(self: DAG) -> tuple[str, dict[str, int]]:
        message, counts = stats(self)
        workflow: Any = self.workflow
        if not workflow.dryrun:
            return message, counts
        if shown and Quietness.RULES in (workflow.output_settings.quiet or ()):
            return "", counts
        shown.append(self)
        lines = "".join(f"{line}\n" for line in said())
        return message + (table(self, counts) if _is_for_slurm() else "") + (f"\n{lines}" if lines else ""), counts

    DAG.stats = answer


def table(dag: Any, rules: Iterable[str]) -> str:
    """What the jobs of each of the rules will ask SLURM for: smallest–largest where they differ."""
    jobs_of, rows, here = defaultdict(list), [], []
    for job in dag.needrun_jobs():
        jobs_of[job.rule.name].append(job)
    for rule in filter(jobs_of.get, rules):  # in Snakemake's order
        if rule in dag.workflow._localrules or jobs_of[rule][0].rule.norun:
            here.append(rule)
        else:
            needs = [_needs(job) for job in jobs_of[rule]]
            rows.append({"job": rule} | {name: _range([need[name] for need in needs]) for name in needs[0]})
    asked = f"Each job asks SLURM for:\n{tabulate(rows, headers='keys', disable_numparse=True)}\n\n" if rows else ""
    return f"\n{asked}" + (f"On this host: {', '.join(here)}\n" if here else "")


def _needs(job: Any) -> dict[str, Any]:
    """What a job asks for, as it is written in its resources; empty where SLURM decides."""
    asked, threads = job.resources, job.rule.resources["_cores"]
    memory = f"{asked.mem_mb_per_cpu}/core" if asked.get("mem_mb_per_cpu") else asked.get("mem_mb", "")
    return {
        "partition": asked.get("slurm_partition", ""),
        "GPUs": asked.get("gres") or asked.get("gpus") or asked.get("gpu") or "",
        "minutes": asked.get("runtime") or RUNTIME,
        "MB": memory,
        # a dry run counts the job's own threads as if this host had one core
        "cores": asked.get("cpus_per_task") or (job.threads if threads.is_evaluable() else threads.value),
    }


def _range(values: list[Any]) -> str:
    """The values as one: the smallest and the largest number, or all that there are of other kinds."""
    if all(isinstance(value, int) for value in values):
        return "–".join(str(value) for value in sorted({min(values), max(values)}))
    return ", ".join(sorted({str(value) for value in values}))


def _is_for_slurm() -> bool:
    """Whether the command line and its profiles say so; in a dry run, Snakemake keeps only that it is one."""
    with redirect_stderr(StringIO()):  # it would say a second time which profiles it reads
        _, arguments = parse_args(None)
    return arguments.executor == "submitit" and arguments.submitit_cluster == "slurm"
