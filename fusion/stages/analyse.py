"""How the task vectors of a suite lie to each other."""

from itertools import product
from pathlib import Path

import pandas as pd
import torch

from fusion.artifacts import new_file
from fusion.job import Job
from fusion.spaces import open_space
from fusion.vectors import TaskVectors


def similarity(job: Job) -> None:
    """Writes the cosine similarity of every pair of task vectors, one row a pair, to output `similarity`."""
    settings, wildcards = job.params["settings"], job.wildcards
    finetuned = [Path(path) for path in job.paths("finetuned")]
    space = open_space(settings["space"], Path(job.input["model"]), job.optional("init"), finetuned, settings["frozen"])
    cosines = cosine_similarities(space.vectors)
    identity = {name: wildcards[name] for name in ("backbone", "mode", "space", "suite")}
    rows = [
        identity | {"seed": int(wildcards["seed"]), "task_a": a, "task_b": b, "cosine": cosines[i, j].item()}
        for (i, a), (j, b) in product(enumerate(settings["tasks"]), repeat=2)
    ]
    with new_file(job.output["similarity"]) as path:
        pd.DataFrame(rows).to_parquet(path, index=False)


def cosine_similarities(vectors: TaskVectors) -> torch.Tensor:
    """cos(τ_a, τ_b) over all coordinates, in float64: (T, T); zero for a task vector that is zero."""
    products = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for layer in vectors.layers():
        flat = layer.taus.reshape(len(vectors), -1).double()
        products += (flat @ flat.T).cpu()
    norms = products.diagonal().sqrt()
    return products / torch.outer(norms, norms).clamp(min=torch.finfo(torch.float64).tiny)
