"""EMR-merging: elect, mask and rescale (multi-model).

Huang et al., NeurIPS 2024, arXiv 2405.17461, algorithm 1. With γ = sgn Σ_t τ_t and the unified task vector
τ_uni = γ ⊙ max {|τ_t| : sgn τ_t = γ}, coordinate by coordinate, task t is served by  θ0 + λ_t m_t ⊙ τ_uni,
m_t = 1[τ_t ⊙ τ_uni > 0],  λ_t = Σ |τ_t| / Σ |m_t ⊙ τ_uni| over all coordinates.

The authors' code takes for both sums in λ_t the sum over tensors of their mean: rescaling 'mean'. Where Σ_t τ_t is
exactly zero no sign is elected and the coordinate stays at θ0; their code elects a minus there.
"""

from typing import Literal

import torch
from torch import Generator, Tensor

from fusion.methods.tall_mask import mask_parameters
from fusion.methods.ties import elected_sign
from fusion.vectors import Layer, TaskModels, TaskVectors


def emr(taus: TaskVectors, *, rng: Generator, rescaling: Literal["sum", "mean"] = "sum") -> TaskModels:
    """For every task the pre-trained model plus the unified task vector, masked and rescaled for it.

    rescaling: how the magnitudes of all tensors are joined in λ_t, by their sums (the paper) or by their means (the
    authors' code). Stored beside θ0 are the unified task vector, and for every task one bit a coordinate and λ_t.
    """
    sizes = {name: tensor.numel() for name, tensor in taus.pretrained.items()}

    def magnitudes(run: Layer) -> Tensor:
        sign, unified = elect_unified(run.taus)
        served = torch.stack([masked(tau, sign, unified) for tau in run.taus])
        weight = 1.0 if rescaling == "sum" else 1 / sizes[run.name]
        return weight * torch.stack([run.taus, served]).abs().sum(2, dtype=torch.float64)

    own, served = taus.reduce(magnitudes, 2, len(taus))
    rescalers = torch.where(served > 0, own / served, 0).tolist()

    def update(task: int, layer: Layer) -> Tensor:
        return masked(layer.taus[task], *elect_unified(layer.taus)).mul_(rescalers[task])

    extra = taus.count() + len(taus) * (mask_parameters(taus) + 1)
    return TaskModels(taus, update, extra, {"rescalers": rescalers}, coordinatewise=True)


def elect_unified(taus: Tensor) -> tuple[Tensor, Tensor]:
    """γ and τ_uni: (T, *shape) -> twice (*shape)."""
    sign = elected_sign(taus)
    largest = torch.zeros_like(sign)
    for tau in taus:
        torch.maximum(largest, tau * sign, out=largest)  # negative where it disagrees
    return sign, largest.mul_(sign)


def masked(tau: Tensor, sign: Tensor, unified: Tensor) -> Tensor:
    """m_t ⊙ τ_uni of one task: three times (*shape) -> (*shape)."""
    return (tau.sign() * sign).clamp_(min=0).mul_(unified)
