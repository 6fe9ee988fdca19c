"""Magnitude pruning of task vectors.

Yadav et al., NeurIPS 2023, arXiv 2306.01708, section 4, step 1 ("trim"), by itself:  τ̂_t = τ_t ⊙ 1[|τ_t| ≥ κ_t]
with κ_t the ⌊density · P⌋-th largest magnitude of τ_t. Followed by task arithmetic it is the baseline of that name.
"""

from typing import Literal

from torch import Generator

from fusion.hyperparameters import Density
from fusion.methods.ties import layer_thresholds, trim
from fusion.vectors import TaskVectors


def magnitude_prune(
    taus: TaskVectors, *, rng: Generator, density: Density = 0.2, scope: Literal["global", "layer"] = "global"
) -> TaskVectors:
    """The task vectors with all but their largest coordinates set to zero.

    density: fraction of coordinates kept per task, of the whole model (scope 'global') or of every tensor by itself
    ('layer'); a density of 1 needs no look at the models. Coordinates of the same magnitude as the last one kept are
    kept too.
    """
    if density == 1:
        return taus
    if scope == "layer":
        return taus.transform(lambda layer: trim(layer.taus, layer_thresholds(layer.taus, density)))
    thresholds = taus.magnitude_thresholds(density)
    return taus.transform(lambda run: trim(run.taus, thresholds), coordinatewise=True)
