"""Task vectors: the only algebra of parameters in this package, streamed layer by layer.

τ_t = θ_t − θ0 for tasks t = 1..T. A layer is one named tensor. Nothing here keeps more than one layer of all
tasks in memory, and θ0 is never modified.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusion.checkpoint import shape


class Layer(NamedTuple):
    """One named tensor of all models, in at least float32."""

    name: str
    pretrained: Tensor  # θ0: (*shape)
    taus: Tensor  # τ: (T, *shape)


class TaskVectors:
    """The task vectors of T models fine-tuned from one pre-trained model.

    pretrained: named tensors; finetuned: T mappings with the same names and shapes. Any mapping will do; a
    `fusion.checkpoint.Checkpoint` reads from disk only what is asked for.
    ValueError names the tensor and both sides if one is missing, extra, of another shape, or not finite.
    """

    def __init__(self, pretrained: Mapping[str, Tensor], finetuned: Sequence[Mapping[str, Tensor]]) -> None:
        if not finetuned:
            raise ValueError("got no fine-tuned model, expected at least one")
        self.pretrained, self.finetuned, self._are_deltas = pretrained, tuple(finetuned), False
        for model in self.finetuned:
            _check_same_tensors(pretrained, model)

    @classmethod
    def of_deltas(cls, pretrained: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]]) -> "TaskVectors":
        """The task vectors given as such: deltas[t][name] is τ_t, exact where θ0 + τ_t would round it."""
        vectors = cls(pretrained, deltas)
        vectors._are_deltas = True
        return vectors

    def __len__(self) -> int:
        return len(self.finetuned)

    def layers(self) -> Iterator[Layer]:
        """Every floating-point layer, one at a time, in the order of the pre-trained model."""
        for name in self.pretrained:
            theta0 = self.pretrained[name].detach()
            if theta0.is_floating_point():
                yield self._layer(name, theta0)
            else:
                self._check_equal(name, theta0)

    def _layer(self, name: str, theta0: Tensor) -> Layer:
        dtype = torch.promote_types(theta0.dtype, torch.float32)
        start = theta0.to(dtype)
        taus = torch.empty((len(self), *theta0.shape), dtype=dtype, device=theta0.device)
        for tau, model in zip(taus, self.finetuned, strict=True):
            tau.copy_(model[name].detach()) if self._are_deltas else torch.sub(model[name].detach(), start, out=tau)
        if not torch.isfinite(taus).all() or not torch.isfinite(start).all():
            self._raise_not_finite(name)
        return Layer(name, start, taus)

    def map(
        self,
        update: Callable[[Layer], Tensor],
        diagnostics: dict[str, Any] | None = None,
        scaling: float | None = None,
    ) -> "Merged":
        """The model θ0 + update(layer), layer by layer; update returns the merged task vector (*shape).

        scaling: a factor of the whole merged task vector, where the method has one. Given here rather than
        multiplied into `update`, it lets a grid of scalings share the work of one merge.
        """
        return Merged(self, update, diagnostics or {}, scaling)

    def count(self) -> int:
        """The number P of floating-point coordinates of one model."""
        return sum(theta0.numel() for theta0 in self.pretrained.values() if theta0.is_floating_point())

    def magnitude_thresholds(self, density: float) -> Tensor:
        """The k-th largest |τ_t| over all coordinates, k = ⌊density · P⌋, exact, as (T,) float32.

        Infinite where k = 0. A radix select over the bits of |τ| in float32: two passes over the layers, the
        upper 16 bits and then the lower 16 bits of the coordinates that share them.
        """
        keep = kept(density, self.count())
        if keep == 0:
            return torch.full((len(self),), torch.inf)
        upper, above = self._select(keep, lambda bits, t: bits >> 16)
        rest = [keep - n for n in above]
        lower, _ = self._select(rest, lambda bits, t: bits[bits >> 16 == upper[t]] & 0xFFFF)
        bits = torch.tensor([(u << 16) | v for u, v in zip(upper, lower, strict=True)], dtype=torch.int32)
        return bits.view(torch.float32)

    def _select(self, keep: int | list[int], key: Callable[[Tensor, int], Tensor]) -> tuple[list[int], list[int]]:
        """Per task, the key (16 bits) of its k-th largest coordinate, and how many keys lie above it."""
        histogram = torch.zeros(len(self), 1 << 16, dtype=torch.int64)
        for layer in self.layers():
            bits = layer.taus.abs().to(torch.float32).cpu().reshape(len(self), -1).view(torch.int32)
            for t in range(len(self)):
                histogram[t] += torch.bincount(key(bits[t], t), minlength=1 << 16)
        at_least = histogram.flip(1).cumsum(1).flip(1)  # (T, 2¹⁶): coordinates whose key is at least this one
        wanted = torch.tensor(keep).expand(len(self)).reshape(-1, 1)
        found = (at_least >= wanted).sum(1) - 1  # (T,): at_least falls, so the last key that still has enough
        above = at_least.gather(1, found[:, None])[:, 0] - histogram.gather(1, found[:, None])[:, 0]
        return found.tolist(), above.tolist()

    def _check_equal(self, name: str, theta0: Tensor) -> None:
        for model in () if self._are_deltas else self.finetuned:
            if not torch.equal(model[name], theta0):
                raise ValueError(
                    f"tensor {name!r} is {theta0.dtype} and differs between {_where(self.pretrained)} and "
                    f"{_where(model)}; buffers and integers must agree, for they cannot be merged"
                )

    def _raise_not_finite(self, name: str) -> None:
        for model in (self.pretrained, *self.finetuned):
            if not torch.isfinite(model[name]).all():
                raise ValueError(f"tensor {name!r} of {_where(model)} holds NaN or infinity; expected finite numbers")
        raise ValueError(f"the difference of tensor {name!r} overflows {self.pretrained[name].dtype}")


@dataclass(frozen=True)
class Merged:
    """A merged model, computed layer by layer when it is read.

    diagnostics: JSON-like facts about the merge (coefficients, densities). individual: for a method that
    changes task vectors before it sums them, the update that reads model t alone in the same way.
    """

    vectors: TaskVectors
    update: Callable[[Layer], Tensor]
    diagnostics: dict[str, Any] = field(default_factory=dict)
    scaling: float | None = None
    individual: Callable[[int, Layer], Tensor] | None = None

    def layers(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every tensor of the pre-trained model, in its dtype and shape.

        Raises ValueError naming a tensor that is not finite: the merge overflowed or diverged.
        """
        yield from self._read(self._scaled)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, in memory."""
        return dict(self.layers())

    def held(self) -> "Merged":
        """The same model with its merged task vector computed now, and kept in memory."""
        found = {layer.name: self.update(layer) for layer in self.vectors.layers()}
        return replace(self, update=lambda layer: found[layer.name])

    def at(self, scaling: float) -> "Merged":
        """The same model at another scaling; only where `scaling` is given."""
        assert self.scaling is not None
        return replace(self, scaling=scaling)

    def individual_tensors(self, task: int) -> dict[str, Tensor]:
        """Model `task` (0…T−1) under what was learned for all; only where `individual` is given."""
        assert self.individual is not None
        read = self.individual
        return dict(self._read(lambda layer: read(task, layer)))

    def _scaled(self, layer: Layer) -> Tensor:
        update = self.update(layer)
        return update if self.scaling is None else self.scaling * update

    def _read(self, update: Callable[[Layer], Tensor]) -> Iterator[tuple[str, Tensor]]:
        layers = self.vectors.layers()
        for name, theta0 in self.vectors.pretrained.items():
            if not theta0.is_floating_point():
                yield name, theta0.clone()
                continue
            layer = next(layers)
            merged = (layer.pretrained + update(layer)).to(theta0.dtype)
            if not torch.isfinite(merged).all():
                raise ValueError(
                    f"merged tensor {name!r} is not finite in {theta0.dtype}; expected a smaller scaling or step"
                )
            yield name, merged
        left = next(layers, None)  # also compares the buffers that come after the last layer
        assert left is None


def kept(density: float, count: int) -> int:
    """⌊density · count⌋ coordinates, safe against 0.29 · 100 = 28.999…"""
    return int(density * count + 1e-6)


def _check_same_tensors(pretrained: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(pretrained.keys() - model.keys()), sorted(model.keys() - pretrained.keys())
    if missing or extra:
        where = f"{_where(model)} against {_where(pretrained)}"
        raise ValueError(f"{where}: missing tensors {missing[:3]}, extra tensors {extra[:3]}; expected the same names")
    for name in pretrained:
        got, expected = shape(model, name), shape(pretrained, name)
        if got != expected:
            raise ValueError(
                f"tensor {name!r}: got shape {got} in {_where(model)}, expected {expected} as in {_where(pretrained)}"
            )


def _where(model: Mapping[str, Tensor]) -> str:
    return "a model in memory" if isinstance(model, dict) else repr(model)
