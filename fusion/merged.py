"""What a method returns: one merged model, or one a task, computed layer by layer when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusion import alike
from fusion.checkpoint import Layout, save
from fusion.device import compiles
from fusion.parallel import RUNS_AHEAD, TOGETHER, Budget, is_finite, workers

if TYPE_CHECKING:
    from fusion.vectors import Layer, TaskVectors

Change = Callable[["Layer"], Tensor]


@dataclass(frozen=True)
class Merged:
    """A merged model, computed layer by layer when it is read.

    diagnostics: JSON-like facts about the merge (coefficients, densities). individual: for a method that
    changes task vectors before it sums them, the update that reads model t alone in the same way. The other
    fields are those of `TaskVectors.map`.
    """

    vectors: TaskVectors
    update: Change
    diagnostics: dict[str, Any] = field(default_factory=dict)
    scaling: float | None = None
    coordinatewise: bool = False
    parts: Change | None = None
    individual: Callable[[int, Layer], Tensor] | None = None
    extra_parameters: int = 0
    reads_taus: bool = True  # whether `update` does
    batched: bool = False  # whether `update` takes matrices of one shape together

    def layers(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every tensor of the pre-trained model, in its dtype and shape, on the vectors' device.

        dtype: of the floating-point tensors, where not that of the pre-trained model. Raises ValueError naming a
        tensor that is not finite (the merge overflowed or diverged), or a running variance that is negative.
        """
        for name, tensor in self._computed(dtype):
            _require_variance(name, tensor)
            yield name, tensor

    def _computed(self, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
        """What `layers` yields, as it is computed."""
        if self.coordinatewise:
            with workers(self.vectors.device, RUNS_AHEAD) as each:
                yield from filter(None, each(lambda job: job(), self._jobs(dtype)))
            return
        if self._is_together:
            yield from self._together(dtype)
            return
        budget = Budget(TOGETHER)
        with workers(self.vectors.device) as each:
            yield from each(partial(self._tensor, dtype, budget), self.vectors.pretrained.items())

    def _jobs(self, dtype: torch.dtype | None) -> Iterator[Callable[[], tuple[str, Tensor] | None]]:
        """What `layers` computes run by run: every run of a tensor, and then the tensor."""
        for name, theta0 in self.vectors.pretrained.items():
            merged = self._new(name, theta0.detach(), dtype)
            if theta0.is_floating_point():
                for read in self.vectors.runs(name, theta0.detach()):
                    yield partial(self._fill, merged, read)
            yield partial(_pair, name, merged)

    def _tensor(self, dtype: torch.dtype | None, budget: Budget, item: tuple[str, Tensor]) -> tuple[str, Tensor]:
        """One of `layers`, from the whole layer."""
        name, theta0 = item[0], item[1].detach()
        merged = self._new(name, theta0, dtype)
        if theta0.is_floating_point():
            read = self.vectors.layer if self.reads_taus else self.vectors.start
            with budget.take(len(self.vectors) * theta0.numel() * merged.element_size()):
                self._fill(merged, partial(read, name, theta0))
        return name, merged

    @property
    def _is_together(self) -> bool:
        """Whether matrices of one shape are computed together: on a GPU, where the method takes them so."""
        return self.batched and not compiles(self.vectors.device)

    def _together(self, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
        """What `layers` computes where it does so together."""
        updates = alike.updates(self.vectors, self.update)
        for name, theta0 in self.vectors.pretrained.items():
            merged = self._new(name, theta0.detach(), dtype)
            if theta0.is_floating_point():
                self._add(merged, *next(updates))
            yield name, merged

    def _new(self, name: str, theta0: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Room for the merged tensor; of integers, which all models must share, the tensor itself."""
        if theta0.is_floating_point():
            return torch.empty(theta0.shape, dtype=dtype or theta0.dtype, device=self.vectors.device)
        self.vectors.check_equal(name, theta0)
        return theta0.to(self.vectors.device, copy=True)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, in memory."""
        return dict(self.layers())

    def layout(self, dtype: torch.dtype | None = None) -> Layout:
        """Dtype and shape of every tensor of `layers(dtype)`."""
        found = {}
        for name, theta0 in self.vectors.pretrained.items():
            found[name] = (dtype if dtype and theta0.is_floating_point() else theta0.dtype, tuple(theta0.shape))
        return found

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the model as one safetensors file, holding one tensor at a time; dtype as in `layers`."""
        save(path, self.layout(dtype), self.layers(dtype), {"format": "pt"})

    def for_task(self, task: int) -> Merged:
        """The model that serves task `task`: this one, whichever it is."""
        return self

    def held(self) -> Merged:
        """The same model with its merged task vector computed now, and kept in memory."""
        each = ((layer, self.update(layer)) for layer in self.vectors.layers())
        if self._is_together:
            each = alike.updates(self.vectors, self.update)
        found = {layer.name: update for layer, update in each}
        return replace(self, update=lambda layer: found[layer.name], coordinatewise=False, reads_taus=False)

    def at(self, scaling: float) -> Merged:
        """The same model at another scaling; only where `scaling` is given."""
        assert self.scaling is not None
        return replace(self, scaling=scaling)

    def task_vectors(self) -> TaskVectors:
        """What another method sees of this model: its parts, or the merged task vector where it has none."""
        factor = 1.0 if self.scaling is None else self.scaling
        if self.parts is None:
            return self.vectors.transform(
                lambda layer: (factor * self.update(layer))[None], coordinatewise=self.coordinatewise, count=1
            )
        parts = self.parts
        return self.vectors.transform(lambda layer: factor * parts(layer), coordinatewise=self.coordinatewise)

    def individual_tensors(self, task: int) -> dict[str, Tensor]:
        """Model `task` (0…T−1) under what was learned for all; only where `individual` is given."""
        assert self.individual is not None
        return self.vectors.map(partial(self.individual, task)).tensors()

    def _fill(self, merged: Tensor, read: Callable[[], Layer]) -> None:
        """Writes one layer, or one run of it, into `merged`."""
        layer = read()
        self._add(merged, layer, self.update(layer))

    def _add(self, merged: Tensor, layer: Layer, update: Tensor) -> None:
        """Writes θ0 and the update of one layer, or of one run of it, into `merged`."""
        factor = 1.0 if self.scaling is None else self.scaling
        place = merged.view(-1)[layer.start : layer.start + layer.pretrained.numel()]
        torch.add(layer.pretrained, update, alpha=factor, out=place.view(layer.pretrained.shape))
        if not is_finite(place):
            raise ValueError(
                f"merged tensor {layer.name!r} is not finite in {merged.dtype}; expected a smaller scaling or step"
            )


@dataclass(frozen=True)
class TaskModels:
    """One model a task, made of shared and of small own parts: what a multi-model method returns.

    update(t, layer) is the task vector (*shape) of the model that serves task t. extra_parameters: how many
    parameters are stored beyond those of one model, in float32 numbers; a mask's bit counts 1/32.
    """

    vectors: TaskVectors
    update: Callable[[int, Layer], Tensor]
    extra_parameters: int
    diagnostics: dict[str, Any] = field(default_factory=dict)
    scaling: float | None = None
    coordinatewise: bool = False

    def for_task(self, task: int) -> Merged:
        """The model that serves task `task`, 0…T−1 in the order of the task vectors."""
        update = partial(self.update, task)
        return Merged(self.vectors, update, self.diagnostics, self.scaling, self.coordinatewise)

    def held(self) -> TaskModels:
        """This: T models are not kept in memory."""
        return self

    def at(self, scaling: float) -> TaskModels:
        """The same models at another scaling; only where `scaling` is given."""
        assert self.scaling is not None
        return replace(self, scaling=scaling)


def _require_variance(name: str, tensor: Tensor) -> None:
    """ValueError where the running variance of a batch normalization has come out negative: its root is NaN."""
    if name.endswith("running_var") and (lowest := tensor.min().item() if tensor.numel() else 0) < 0:
        raise ValueError(
            f"merged tensor {name!r} holds {lowest:.3g}, and a variance is never negative: this method goes beyond the "
            "models that it merges; expected a smaller scaling"
        )


def _pair(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    return name, tensor
