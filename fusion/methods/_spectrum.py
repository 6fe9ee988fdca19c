"""Singular values and vectors for the methods that work on matrices."""

import logging

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), σ (k,) falling and V (n, k) with matrix (m, n) = U diag(σ) Vᵀ; k counts the non-zero σ.

    σ below max(m, n) · ε · σ_1 is rounding and left out. Falls back to float64 if float32 does not converge.
    Raises ValueError where σ overflows.
    """
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError:  # torch.linalg.LinAlgError is one
        log.warning("SVD of a %s matrix did not converge in %s; again in float64", tuple(matrix.shape), matrix.dtype)
        u, s, vh = (part.to(matrix.dtype) for part in torch.linalg.svd(matrix.double(), full_matrices=False))
    if not torch.isfinite(s).all():
        raise ValueError(
            f"the singular values of a {tuple(matrix.shape)} matrix overflow {s.dtype}; "
            "expected task vectors of ordinary size: check the checkpoints"
        )
    rank = int((s > max(matrix.shape) * torch.finfo(s.dtype).eps * s[:1]).sum())
    return u[:, :rank], s[:rank], vh[:rank].T


def leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The at most `count` leading singular triples U (m, k), σ (k,), V (n, k)."""
    u, s, v = svd(matrix)
    return u[:, :count], s[:count], v[:, :count]


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (rows if it is wide), PQᵀ of the SVD P D Qᵀ: (m, k) -> (m, k)."""
    if matrix.shape[1] == 0:
        return matrix
    u, _, v = svd(matrix)
    return u @ v.T
