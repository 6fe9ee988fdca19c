"""Simple averaging of fine-tuned weights (model soups).

Wortsman et al., ICML 2022, arXiv 2203.05482, "uniform soup":  θ = θ0 + 1/T Σ_t τ_t.
"""

from torch import Generator

from fusion.vectors import Merged, TaskVectors


def simple_average(taus: TaskVectors, *, rng: Generator) -> Merged:
    """The mean of the fine-tuned models."""
    return taus.map(
        lambda layer: layer.taus.mean(0), coordinatewise=True, parts=lambda layer: layer.taus / len(layer.taus)
    )
