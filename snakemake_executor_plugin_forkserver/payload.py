"""One job of the workflow as the plain `fusion.job.Job` that its stage receives under any executor."""

from typing import Any

from fusion.job import Job


def payload(job: Any, gpus: int = 0) -> Job:
    """The Job of a Snakemake job or of a script's `snakemake` object; ValueError if a file has no name."""
    params = {name: _plain(value) for name, value in job.params.items()}
    return Job(
        stage=params.pop("stage"),
        input=_named("input", job.input),
        output=_named("output", job.output),
        params=params,
        wildcards={name: str(value) for name, value in job.wildcards.items()},
        threads=int(job.threads),
        gpus=gpus,
        log=str(job.log[0]) if job.log else "",
    )


def _named(kind: str, files: Any) -> dict[str, Any]:
    """The paths by name: a string for one file, a list for several."""
    named = {name: _plain(value) for name, value in files.items()}
    count = sum(len(value) if isinstance(value, list) else 1 for value in named.values())
    if count != len(files):
        raise ValueError(
            f"got {len(files) - count} {kind} files without a name ({', '.join(map(str, files))}); "
            f"a rule with params.stage names each of them, as in '{kind}: data=\"…\"'"
        )
    return named


def _plain(value: Any) -> Any:
    """The value without Snakemake's own kinds of str and list: unpickling those would import Snakemake."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
