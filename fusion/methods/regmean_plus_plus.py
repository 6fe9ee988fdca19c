"""RegMean++.

Nguyen et al., TMLR 2026, arXiv 2508.03121. RegMean block by block from the input on: the inputs X_t from which block l
gets its Gram matrices are the activations on task t of the model whose blocks before l are merged already, run through
block l of model t:  W_l = (Σ_t W_{t,l} G_t)(Σ_t G_t)⁻¹,  G_t = X_tᵀ X_t. All other tensors are averaged.

As in the authors' code a block is one transformer layer, within which the weights of model t run, and what comes
before the first is averaged. A linear layer outside of the blocks, which the authors do not merge, is one by itself.
The code's factor of off-diagonal entries is 0.95, where RegMean has 0.9.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Fraction
from fusion.methods.regmean import regression_mean
from fusion.needs import Features, MergedGrams
from fusion.vectors import Layer, Merged, TaskVectors


def regmean_plus_plus(
    taus: TaskVectors, merged_grams: MergedGrams, *, rng: Generator, off_diagonal: Fraction = 0.95
) -> Merged:
    """The model whose linear layers answer most like those of every task's model on what the merged model feeds them.

    merged_grams: those of `walk` with the same `off_diagonal`, the factor of the Gram matrices' off-diagonal entries;
    a weight that they lack is averaged.
    """

    def update(layer: Layer) -> Tensor:
        grams = merged_grams.get(layer.name)
        return layer.taus.mean(0) if grams is None else regression_mean(layer, grams, off_diagonal)

    return taus.map(update)


def walk(
    taus: TaskVectors, features: Features, names: Sequence[str], off_diagonal: float
) -> Iterator[tuple[str, Tensor]]:
    """The Gram matrices (T, in, in) of every linear layer, by its weight's name, as the blocks before it are merged.

    features: (task, parameters, names of weights) -> Gram matrices of those layers' inputs. names: of the weights of
    all linear layers, in the order in which they run.
    """
    merged = {layer.name: layer.pretrained + layer.taus.mean(0) for layer in taus.layers()}
    for block in blocks(names):
        layers = {name: taus.layer(name, taus.pretrained[name].detach()) for name in _tensors(block, merged)}
        each = [features(t, merged | _model(layers.values(), t), block) for t in range(len(taus))]
        for name in block:
            grams = torch.stack([one[name] for one in each])
            yield name, grams
            merged[name] = layers[name].pretrained + regression_mean(layers[name], grams, off_diagonal)


def blocks(names: Sequence[str]) -> list[list[str]]:
    """The names of weights in groups, as they come: 'encoder.layer.3.…' are one, any without a number its own."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_block(name), []).append(name)
    return list(groups.values())


def _block(name: str) -> str:
    """What the tensors of one block begin with: the name up to its first number, or all of it."""
    numbered = re.match(r"(.*?\.)?\d+\.", name)
    return numbered.group() if numbered else name


def _tensors(block: Sequence[str], names: Iterable[str]) -> list[str]:
    """All tensors of a block, its biases and norms too."""
    return [name for name in names if _block(name) == _block(block[0])]


def _model(layers: Iterable[Layer], task: int) -> dict[str, Tensor]:
    """The block of one task's model."""
    return {layer.name: layer.pretrained + layer.taus[task] for layer in layers}
