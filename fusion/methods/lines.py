"""LiNeS: merged task vectors that grow linearly with depth.

Wang et al., ICLR 2025, arXiv 2410.17146, equation 2. For block l of L:  θ_l = θ0_l + (α + β (l − 1) / (L − 1)) τ_l.

For multi-task merging the authors' code sets α = ‖Σ_t τ_t‖₁ / ‖τ‖₁ / T, so that the first block is as far from θ0 as
the average model is, and tunes β on the grid that the constant λ of the merging method would have had; λ is then 1.
What lies outside the blocks (embeddings, final norms, heads) has α, as in their code. Several stacks of blocks, as
of a text and a vision encoder, have a depth each. A stack of one block has α.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Scaling
from fusion.vectors import Layer, Merged, NotApplicable


def lines(merged: Merged, *, rng: Generator, alpha: Scaling | None = None, beta: Scaling = 0.5) -> Merged:
    """The merged model with each layer's task vector multiplied by α + β · depth, depth from 0 to 1.

    alpha: α, by default the authors' ratio of norms, for which the merged model is computed once more; beta: β,
    which the paper tunes. Both come on top of the merging method's `scaling`, which the paper sets to 1. The block
    is the first number among the dotted parts of a tensor's name: NotApplicable is raised where none has one.
    """
    depth = depths(merged.vectors.pretrained)
    if not depth:
        raise NotApplicable("LiNeS scales by depth: got no tensor with a block's number in its name, as in 'layer.3.w'")
    lowest = norm_ratio(merged) / len(merged.vectors) if alpha is None else alpha
    parts, individual = merged.parts, merged.individual

    def factor(layer: Layer) -> float:
        return lowest + beta * depth.get(layer.name, 0.0)

    return replace(
        merged,
        update=lambda layer: factor(layer) * merged.update(layer),
        parts=None if parts is None else lambda layer: factor(layer) * parts(layer),
        individual=None if individual is None else lambda t, layer: factor(layer) * individual(t, layer),
        diagnostics=merged.diagnostics | {"lines": {"alpha": lowest, "beta": beta}},
    )


def depths(names: Iterable[str]) -> dict[str, float]:
    """(l − 1) / (L − 1) of the tensors in a block, by name; the stack is what precedes the block's number."""
    places: dict[str, tuple[str, int]] = {}
    for name in names:
        parts = name.split(".")
        first = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if first is not None:
            places[name] = (".".join(parts[:first]), int(parts[first]))
    last: dict[str, int] = {}
    for stack, block in places.values():
        last[stack] = max(block, last.get(stack, 1))
    return {name: block / last[stack] for name, (stack, block) in places.items()}


def norm_ratio(merged: Merged) -> float:
    """‖Σ_t τ_t‖₁ / ‖τ‖₁ over all layers, τ the merged task vector before its scaling; 1 where that is zero."""

    def read(layer: Layer) -> Tensor:
        both = layer.taus.sum(0), merged.update(layer)
        return torch.stack([part.abs().sum(dtype=torch.float64) for part in both])

    if merged.coordinatewise:
        total, found = merged.vectors.reduce(read, 2).tolist()
    else:
        total, found = torch.stack([read(layer) for layer in merged.vectors.layers()]).sum(0).tolist()
    return total / found if found else 1.0
