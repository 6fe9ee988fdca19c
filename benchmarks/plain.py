"""What the merges are compared with: their formulas written down plainly."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fusion.vectors import TaskVectors

Tensors = Iterator[tuple[str, Tensor]]


def plain_ties(vectors: TaskVectors) -> Tensors:
    """TIES in memory: all task vectors flattened, the k-th largest magnitude of each, then the election."""
    pretrained = dict(vectors.pretrained)
    start = torch.cat([tensor.flatten() for tensor in pretrained.values()])
    taus = start.new_empty(len(vectors), len(start))
    for t, model in enumerate(vectors.finetuned):
        taus[t] = torch.cat([model[name].flatten() for name in pretrained]) - start
    keep = int(0.2 * len(start))
    thresholds = torch.stack([tau.abs().kthvalue(len(start) - keep + 1).values for tau in taus])
    taus = torch.where(taus.abs() >= thresholds[:, None], taus, 0)
    signs = taus.sum(0).sign()
    agrees = taus.sign() == signs
    merged = start + torch.where(agrees, taus, 0).sum(0) / (agrees & (taus != 0)).sum(0).clamp(min=1)
    parts = merged.split([tensor.numel() for tensor in pretrained.values()])
    for (name, tensor), part in zip(pretrained.items(), parts, strict=True):
        yield name, part.view(tensor.shape)


def tsv_m(taus: Tensor) -> Tensor:
    """TSV-M of one matrix, (T, m, n) -> (m, n), with the full SVD of every task vector."""
    rank = min(taus.shape[1:]) // len(taus)
    parts = [torch.linalg.svd(tau, full_matrices=False) for tau in taus]
    left, right = torch.cat([u[:, :rank] for u, _, _ in parts], 1), torch.cat([v[:rank] for _, _, v in parts])
    return (polar(left) * torch.cat([s[:rank] for _, s, _ in parts])) @ polar(right)


def iso_c(taus: Tensor) -> Tensor:
    """Iso-C of one matrix, (T, m, n) -> (m, n), with the full SVD of the sum."""
    u, s, v = torch.linalg.svd(taus.sum(0), full_matrices=False)
    return s.mean() * (u @ v)


def iso_cts(taus: Tensor) -> Tensor:
    """Iso-CTS of one matrix, (T, m, n) -> (m, n), with the full SVD of the sum and of what each task has beside it."""
    rank, tasks = min(taus.shape[1:]), len(taus)
    own = (rank - int(rank * 0.8)) // tasks
    shared = rank - own * tasks
    u, s, v = (one[:shared] for one in transposed_svd(taus.sum(0)))
    rest = [transposed_svd(tau - u.T @ (u @ tau)) for tau in taus]
    left, scales, right = (
        torch.cat([common, *(parts[i][:own] for parts in rest)]) for i, common in enumerate((u, s, v))
    )
    return scales.mean() * (polar(left).T @ polar(right))


def wudi(taus: Tensor, steps: int) -> Tensor:
    """WUDI of one matrix, (T, m, n) -> (m, n): Adam on the loss as it is written, by autograd."""
    norms = taus.square().sum((1, 2))
    merged = taus.sum(0).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(steps):
        loss = (((merged - taus) @ taus.mT).square().sum((1, 2)) / norms).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return merged.detach()


def doge(taus: Tensor, steps: int) -> Tensor:
    """DOGE of one matrix without its last mask, (T, m, n) -> (m, n): Adam on the loss as it is written, by autograd."""
    rank = min(taus.shape[1:])
    leading = [torch.linalg.svd(tau, full_matrices=False).U[:, : rank // len(taus)] for tau in taus]
    basis = torch.linalg.svd(torch.cat(leading, 1), full_matrices=False).U[:, : rank // 6]
    weights = 0.07 / torch.linalg.vector_norm(taus, dim=(1, 2), keepdim=True)
    change = torch.zeros_like(taus[0], requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=1e-4)
    for _ in range(steps):
        merged = (weights * (taus + change)).sum(0)
        loss = (taus * (taus - merged)).sum(2).square().sum()
        (slope,) = torch.autograd.grad(loss, [change])
        change.grad = slope - basis @ (basis.T @ slope)
        optimizer.step()
    return (weights * (taus + change.detach())).sum(0)


def polar(matrix: Tensor) -> Tensor:
    """U Vᵀ of U Σ Vᵀ."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def transposed_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uᵀ, Σ and Vᵀ: a row a triple."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u.T, s, v


PLAIN: dict[str, Callable[[TaskVectors], Tensors]] = {
    "ties": plain_ties,
    "tsv_m": lambda vectors: by_matrix(vectors, tsv_m),
    "iso_c": lambda vectors: by_matrix(vectors, iso_c),
}


def by_matrix(vectors: TaskVectors, update: Callable[[Tensor], Tensor]) -> Tensors:
    """Every matrix updated, all else averaged."""
    for layer in vectors.layers():
        change = update(layer.taus) if layer.pretrained.dim() == 2 else layer.taus.mean(0)
        yield layer.name, layer.pretrained + change
