"""Model breadcrumbs: task vectors without their outliers and their negligible coordinates.

Davari and Belilovsky, ECCV 2024, arXiv 2312.06795, section 3. In each layer, with the magnitudes |τ_t| sorted, the
coordinates below the β-th and above the γ-th quantile are dropped: a fraction 1 − γ, the outliers, and all but a
fraction γ − β, the density, of the rest; then task arithmetic. Defaults: β 85 %, γ 99.3 %.

The authors' code does so in each row (the last dimension) of a tensor by itself: scope 'row'.
"""

from typing import Any, Literal

from numpy.typing import NDArray
from torch import Generator, Tensor

from fusion.compiled import compiled
from fusion.device import compiles
from fusion.hyperparameters import Density, Fraction
from fusion.thresholds import kept, magnitudes_at
from fusion.vectors import Layer, TaskVectors

Array = NDArray[Any]


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
        taus = layer.taus.contiguous()
        if taus.numel() == 0:
            return taus
        is_one_row = scope == "layer" or layer.pretrained.dim() == 0
        columns = layer.pretrained.numel() if is_one_row else layer.pretrained.shape[-1]
        for tau in taus:
            keep_middle(tau.view(-1, columns), density, outliers)
        return taus

    return taus.transform(mask)


def keep_middle(rows: Tensor, density: float, outliers: float) -> None:
    """Sets to zero, in place, what is among the largest or the smallest magnitudes of its row: (r, n)."""
    size = rows.shape[1]
    keep = kept(density, size)
    if keep == 0:
        rows.zero_()
        return
    top = size - 1 - min(kept(outliers, size), size - keep)  # places in rising order
    ends = [top - keep + 1, top]
    if compiles(rows.device):
        _keep_between(rows.numpy(), magnitudes_at(rows.numpy(), ends))
        return
    magnitudes = rows.abs()
    ordered = magnitudes.sort(dim=1).values
    low, high = (ordered[:, end, None] for end in ends)
    rows.masked_fill_(magnitudes.lt(low) | magnitudes.gt(high), 0)


@compiled
def _keep_between(rows: Array, ends: Array) -> None:
    """Sets to zero those coordinates of (r, n) whose magnitudes are not from ends[r, 0] to ends[r, 1]."""
    zero = rows.dtype.type(0)
    for row in range(len(rows)):
        low, high = ends[row, 0], ends[row, 1]
        for i in range(rows.shape[1]):
            magnitude = abs(rows[row, i])
            rows[row, i] = rows[row, i] if (magnitude >= low) & (magnitude <= high) else zero
