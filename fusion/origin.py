"""Where a result comes from: the settings and the code that made it, and those of what it was made from."""

from pathlib import Path

from fusion.artifacts import digest, read_json
from fusion.checkpoint import Checkpoint
from fusion.job import Job


def origin(job: Job) -> dict[str, str]:
    """Hashes of the settings and of the code of a job on fine-tuned models, those models and statistics included."""
    made = [read_json(Path(folder) / "training.json") for folder in job.paths("finetuned")]
    made += [Checkpoint(path).metadata for path in job.paths("statistics")]
    return {
        "config_hash": digest([job.params["settings"], [one["config_hash"] for one in made]]),
        "code_version": digest([job.params["code"], [one["code_version"] for one in made]]),
    }
