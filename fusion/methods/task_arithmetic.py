"""Task arithmetic.

Ilharco et al., ICLR 2023, arXiv 2212.04089, section 4.2:  θ = θ0 + λ Σ_t τ_t.
"""

from torch import Generator

from fusion.hyperparameters import Scaling
from fusion.vectors import Merged, TaskVectors


def task_arithmetic(taus: TaskVectors, *, rng: Generator, scaling: Scaling = 0.3) -> Merged:
    """The pre-trained model plus `scaling` (λ) times the sum of the task vectors."""
    return taus.map(
        lambda layer: layer.taus.sum(0), scaling=scaling, coordinatewise=True, parts=lambda layer: layer.taus
    )
