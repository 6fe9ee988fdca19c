"""Model breadcrumbs: task vectors without their outliers and their negligible coordinates.

Davari and Belilovsky, ECCV 2024, arXiv 2312.06795, section 3. In each layer, with the magnitudes |τ_t| sorted, the
coordinates below the β-th and above the γ-th quantile are dropped: a fraction 1 − γ, the outliers, and all but a
fraction γ − β, the density, of the rest; then task arithmetic. Defaults: β 85 %, γ 99.3 %.

The authors' code does so in each row (the last dimension) of a tensor by itself: scope 'row'.
"""

from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from fusion.device import compiles
from fusion.hyperparameters import Density, Fraction
from fusion.thresholds import kept
from fusion.vectors import Layer, TaskVectors


def breadcrumbs(
    taus: TaskVectors,
    *,
    rng: Generator,
    density: Density = 0.143,
    outliers: Fraction = 0.007,
    scope: Literal["layer", "row"] = "layer",
) -> TaskVectors:
    """The task vectors with the fraction `density` of their coordinates that is largest but for the outliers.

    density: fraction kept (γ − β); outliers: fraction of the largest dropped (1 − γ), less where density leaves
    less than that. Coordinates of the same magnitude as the first or the last one kept are kept too.
    """

    def mask(layer: Layer) -> Tensor:
        found = torch.empty_like(layer.taus)
        is_one_row = scope == "layer" or layer.pretrained.dim() == 0 or found.numel() == 0
        for tau, out in zip(layer.taus, found, strict=True):
            rows = tau.reshape(1, -1) if is_one_row else tau.reshape(-1, tau.shape[-1])
            out.copy_(middle(rows, density, outliers).reshape(tau.shape))
        return found

    return taus.transform(mask)


def middle(rows: Tensor, density: float, outliers: float) -> Tensor:
    """The coordinates whose magnitude is neither among the largest nor the smallest of its row: (r, n) -> (r, n)."""
    size = rows.shape[1]
    keep = kept(density, size)
    if keep == 0:
        return torch.zeros_like(rows)
    top = size - 1 - min(kept(outliers, size), size - keep)  # places in rising order
    ends = [top - keep + 1, top]
    magnitudes = rows.abs()
    if compiles(rows.device):
        ordered = torch.from_numpy(np.partition(magnitudes.numpy(), ends, axis=1))
    else:
        ordered = magnitudes.sort(dim=1).values
    low, high = (ordered[:, end, None] for end in ends)
    inside = magnitudes.ge(low) & magnitudes.le(high)
    return torch.where(inside, rows, 0)
