"""Tells Snakemake which results are stale: those that were made from something else than they would be now.

Snakemake remembers parameters and inputs in `.snakemake` and compares times. Here the results' own records decide
(`fusion.record`), so that neither a lost `.snakemake` nor a copied folder makes old numbers look new, or new ones old.
"""

from functools import cache, partial
from typing import Any

from snakemake.dag import DAG
from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.persistence import PersistenceBase
from snakemake.settings.enums import RerunTrigger
from snakemake.workflow import Workflow

from fusion import record
from snakemake_executor_plugin_forkserver.payload import payload
from snakemake_executor_plugin_forkserver.report import has_stage

identity = cache(record.identity)  # nothing is made while a run is planned


def is_stale(job: Any) -> bool:
    """Whether a result of the job that is there was made from something else than it would be now."""
    if not has_stage(job):
        return False
    found = payload(job)
    current = record.is_current(found, identity)
    if current and not job.rule.workflow.dryrun:
        record.remember(found)
    return not current


def require_sources(job: Any) -> None:
    """Nothing; WorkflowError where the sources are gone that the job, which is to run, would read."""
    sources = job.params.get("sources") if has_stage(job) else None
    if sources and "gone" in sources:
        raise WorkflowError(
            f"{sources['gone']}; what was prepared from it is damaged, or not what would be prepared now, or asked for "
            "anew: put the source back"
        )


def decide_by_records() -> None:
    """Let records decide what runs again, and no times, unless the user named other `--rerun-triggers`.

    Snakemake has no setting for either, so its answers are replaced. Rules without `params.stage` have no outputs here,
    and nothing to compare.
    """
    answers = {
        (PersistenceBase, "has_metadata"): lambda self, job: True,
        (PersistenceBase, "has_outdated_metadata"): lambda self, job: False,
        (PersistenceBase, "params_changed"): lambda self, job, file=None: is_stale(job),
        (Workflow, "rerun_triggers"): property(_triggers),
        (Job, "output_mintime"): property(partial(_oldest_output, vars(Job)["output_mintime"].fget)),
        (DAG, "update_needrun"): _requiring_sources(_not_for_copies(DAG.update_needrun)),
    }
    for (owner, name), answer in answers.items():
        assert hasattr(owner, name), f"Snakemake has no {owner.__name__}.{name} any more"
        setattr(owner, name, answer)


def _by_records_alone(workflow: Any) -> bool:
    return set(workflow.dag_settings.rerun_triggers) == set(RerunTrigger.all())


def _triggers(workflow: Any) -> Any:
    only_records = frozenset({RerunTrigger.PARAMS})
    return only_records if _by_records_alone(workflow) else workflow.dag_settings.rerun_triggers


def _requiring_sources(plan: Any) -> Any:
    """The function that plans what is to run, with an error before any job deletes what it cannot make again."""

    async def update_needrun(dag: DAG, *arguments: Any, **named: Any) -> None:
        await plan(dag, *arguments, **named)
        for job in dag.needrun_jobs():
            require_sources(job)

    return update_needrun


def _not_for_copies(plan: Any) -> Any:
    """The function that plans what is to run, and runs nothing for copies (`fusion.record`) that are made again.

    They are made for what runs, and what runs waits for them: for the time of planning they do not know who that is.
    """

    async def update_needrun(dag: DAG, *arguments: Any, **named: Any) -> None:
        copies = [job for job in dag.jobs if record.COPIES & set(job.output.keys())]
        hidden = {job: dag.depending.pop(job) for job in copies if job in dag.depending}
        try:
            await plan(dag, *arguments, **named)
        finally:
            dag.depending.update(hidden)

    return update_needrun


async def _oldest_output(read: Any, job: Any) -> Any:
    """When the oldest output was made, which Snakemake compares with the inputs; None, and it does not."""
    return None if _by_records_alone(job.rule.workflow) else await read(job)
