"""Regression mean (RegMean).

Jin et al., ICLR 2023, arXiv 2212.09849, section 3.2. For each linear layer W (out, in), with G_t the Gram matrix of
its inputs in model t, off-diagonals times a factor:  W = (Σ_t W_t G_t)(Σ_t G_t)⁻¹, the weights whose outputs are
nearest to those of all models in least squares. All other tensors are averaged.

W_t = W0 + τ_t gives W0 (Σ_t G_t)(Σ_t G_t)⁻¹ + (Σ_t τ_t G_t)(Σ_t G_t)⁻¹: the same on task vectors as on weights.
Computed is the mean τ̄ plus that of τ_t − τ̄, so that directions in which no task has inputs get the mean, where the
paper's inverse does not exist. As in the authors' code, G_t is the mean over tokens, not the paper's sum: tasks count
alike however long their texts; unlike there, padding is no token.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Fraction
from fusion.needs import Grams
from fusion.vectors import Layer, Merged, TaskVectors

log = logging.getLogger(__name__)


def regmean(taus: TaskVectors, grams: Grams, *, rng: Generator, off_diagonal: Fraction = 0.9) -> Merged:
    """The model whose linear layers answer most like those of every task's model on that task's inputs.

    grams: by the names of weights; a weight that it lacks is averaged. off_diagonal: the factor of the Gram
    matrices' off-diagonal entries.
    """

    def update(layer: Layer) -> Tensor:
        found = [one[layer.name] for one in grams if layer.name in one]
        return regression_mean(layer, found, off_diagonal) if found else layer.taus.mean(0)

    return taus.map(update)


def regression_mean(layer: Layer, grams: Sequence[Tensor] | Tensor, off_diagonal: float) -> Tensor:
    """τ̄ + (Σ_t (τ_t − τ̄) G_t)(Σ_t G_t)⁺ of one weight, in float64: G_t (in, in) each -> (out, in).

    ValueError if there is not one G_t a task, of the weight's number of inputs.
    """
    size, count = layer.taus.shape[-1], len(layer.taus)
    if [tuple(gram.shape) for gram in grams] != [(size, size)] * count:
        raise ValueError(
            f"Gram matrices of {layer.name!r}: got {[tuple(gram.shape) for gram in grams]}, "
            f"expected {count} of ({size}, {size})"
        )
    mean = layer.taus.mean(0)
    total = torch.zeros(size, size, dtype=torch.float64, device=mean.device)
    product = torch.zeros(mean.shape, dtype=torch.float64, device=mean.device)
    for tau, gram in zip(layer.taus, grams, strict=True):
        damped = _damp(gram.to(product), off_diagonal)
        total += damped
        product += (tau - mean).double() @ damped
    return mean + _divide(product, total, layer.name).to(mean)


def _damp(gram: Tensor, off_diagonal: float) -> Tensor:
    """The matrix with its off-diagonal entries times a factor."""
    return off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal())


def _divide(product: Tensor, total: Tensor, name: str) -> Tensor:
    """product (out, in) times the pseudo-inverse of a positive semi-definite total (in, in)."""
    scale = total.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1)  # a unit diagonal: entries of any magnitude, and pivots that compare
    unit = total / scale / scale[:, None]
    factor, failed = torch.linalg.cholesky_ex(unit)
    if failed or (factor.diagonal() < 1e-3).any():  # squared, what float32 knows of the inputs
        log.warning("the inputs of %s do not span all %d directions; their pseudo-inverse is used", name, len(total))
        return product / scale @ torch.linalg.pinv(unit, hermitian=True, rtol=1e-6) / scale
    return torch.cholesky_solve((product / scale).T, factor).T / scale
