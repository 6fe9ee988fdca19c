"""Task vectors: the only algebra of parameters in this package, streamed layer by layer.

τ_t = θ_t − θ0 for tasks t = 1..T. A layer is one named tensor, a run a piece of a layer that fits in a core's
cache. Nothing here keeps more than one layer of all tasks in memory, and θ0 is never modified. All is computed on
one device, where a method finds its layers and leaves what it makes of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusion import thresholds
from fusion.checkpoint import Shaped
from fusion.device import CPU
from fusion.fitting import fitting, not_finite, require_wide, where
from fusion.merged import Change, Merged, TaskModels
from fusion.parallel import RUNS_AHEAD, is_finite, workers

__all__ = ["Change", "Layer", "Merged", "NotApplicable", "TaskModels", "TaskVectors"]

RUN = 1 << 21  # numbers in the task vectors of one run, 8 MB of them
RUN_ELSEWHERE = 1 << 25  # the same on a GPU, which takes as long to be told of a small run as to compute it


class NotApplicable(ValueError):
    """A method's reason for not merging these models at all (their number, their shapes); tables show it."""


class Layer(NamedTuple):
    """One named tensor of all models in at least float32; or a flat run of its coordinates; or several matrices."""

    name: str
    pretrained: Tensor  # θ0: (*shape), or (c,) of a run, or (B, m, n)
    taus: Tensor  # τ: (T, *shape), or (T, c), or (T, B, m, n)
    start: int = 0  # of a run: its first coordinate's place in the flattened tensor
    is_batch: bool = False  # of B matrices; `name` is that of the first

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix, or several."""
        return self.is_batch or self.pretrained.dim() == 2


class TaskVectors:
    """The task vectors of T models fine-tuned from one pre-trained model.

    pretrained: named tensors; finetuned: T mappings with the same names and shapes. Any mapping will do, a
    `state_dict()` too; a `fusion.checkpoint.Checkpoint` reads from disk only what is asked for. device: where all is
    computed, and merged tensors are; where the pre-trained tensors are unless given.
    ValueError names the tensor and both sides if one is missing, extra, of another shape, integer against float, or
    not finite; and says what to pass in place of what is no mapping.
    """

    def __init__(
        self,
        pretrained: Mapping[str, Tensor],
        finetuned: Sequence[Mapping[str, Tensor]],
        device: torch.device | str | None = None,
    ) -> None:
        self.pretrained, self.finetuned, self._are_deltas = pretrained, fitting(pretrained, finetuned), False
        self.device = torch.device(device) if device is not None else device_of(pretrained)
        self._count = len(self.finetuned)
        self._changes: tuple[tuple[Change, bool], ...] = ()

    @classmethod
    def of_deltas(
        cls,
        pretrained: Mapping[str, Tensor],
        deltas: Sequence[Mapping[str, Tensor]],
        device: torch.device | str | None = None,
    ) -> "TaskVectors":
        """The task vectors given as such: deltas[t][name] is τ_t, exact where θ0 + τ_t would round it."""
        vectors = cls(pretrained, deltas, device)
        vectors._are_deltas = True
        return vectors

    def __len__(self) -> int:
        """The number T of task vectors."""
        return self._count

    def transform(self, change: Change, *, coordinatewise: bool = False, count: int | None = None) -> "TaskVectors":
        """The task vectors with change(layer), (T, *shape), in place of τ; computed anew at every reading.

        The τ that `change` is given are its own: it may write in them.
        coordinatewise: `change` takes any run of coordinates as well as a layer, and is then given runs, in
        parallel. count: the number of task vectors that it returns, where that is not T.
        """
        vectors = TaskVectors(self.pretrained, self.finetuned, self.device)
        vectors._are_deltas = self._are_deltas
        vectors._changes = (*self._changes, (change, coordinatewise))
        vectors._count = count or len(self)
        return vectors

    def layers(self) -> Iterator[Layer]:
        """Every floating-point layer, one at a time, in the order of the pre-trained model."""
        for name in self.pretrained:
            theta0 = self.pretrained[name].detach()
            if theta0.is_floating_point():
                yield self.layer(name, theta0)
            else:
                self.check_equal(name, theta0)

    def visit(self, read: Callable[[Layer], Any], stride: int = 1) -> Iterator[Any]:
        """read(run) of every run, in their order; the runs are read in parallel.

        stride: read but one coordinate in so many, of every layer: a sample, in which a random change draws anew.
        """
        with workers(self.device, RUNS_AHEAD) as each:
            yield from each(lambda run: read(run()), self._all_runs(stride))

    def _all_runs(self, stride: int) -> Iterator[Callable[[], Layer]]:
        for name in self.pretrained:
            theta0 = self.pretrained[name].detach()
            if theta0.is_floating_point():
                yield from self.runs(name, theta0, stride)

    def reduce(self, read: Callable[[Layer], Tensor], *shape: int) -> Tensor:
        """Σ over all runs of read(run), each (*shape), added in their order; zeros where there is none."""
        total = None
        for found in self.visit(read):
            total = found if total is None else total.add_(found)
        return torch.zeros(shape, device=self.device) if total is None else total

    def map(
        self,
        update: Callable[[Layer], Tensor],
        diagnostics: dict[str, Any] | None = None,
        scaling: float | None = None,
        *,
        coordinatewise: bool = False,
        parts: Callable[[Layer], Tensor] | None = None,
        batched: bool = False,
    ) -> "Merged":
        """The model θ0 + update(layer), layer by layer; update returns the merged task vector (*shape).

        scaling: a factor of the whole merged task vector, where the method has one. Given here rather than
        multiplied into `update`, it lets a grid of scalings share the work of one merge. coordinatewise: `update`
        takes any run of coordinates as well as a layer, and is then given runs, in parallel. parts: the task
        vectors (T, *shape) whose sum `update` is, where a method changes task vectors and then adds them. batched:
        `update` takes matrices of one shape together as well, (B, m, n) and (T, B, m, n), and is given those on a GPU.
        """
        return Merged(self, update, diagnostics or {}, scaling, coordinatewise, parts, batched=batched)

    def magnitude_thresholds(self, density: float) -> Tensor:
        """The k-th largest |τ_t| over all coordinates, k = ⌊density · P⌋, exact, as (T,) float32; inf where k = 0.

        They are on the device of the task vectors.
        """
        return thresholds.magnitude_thresholds(self, density)

    def count(self) -> int:
        """The number P of floating-point coordinates of one model."""
        return sum(theta0.numel() for theta0 in self.pretrained.values() if theta0.is_floating_point())

    def runs(self, name: str, theta0: Tensor, stride: int = 1) -> Iterator[Callable[[], Layer]]:
        """The layer's runs in order, each computed when it is called: by a worker, where no change needs it whole."""
        if all(coordinatewise for _, coordinatewise in self._changes):
            models = [model[name].detach().reshape(-1) for model in self.finetuned]
            length = run_length(len(models), self.device) * stride
            for start in range(0, theta0.numel(), length):
                place = slice(start, start + length, stride)
                yield partial(self._run, name, theta0.reshape(-1)[place], [model[place] for model in models], start)
            return
        for run in _split(self.layer(name, theta0)):
            yield partial(Layer, name, run.pretrained[::stride], run.taus[:, ::stride], run.start)

    def _run(self, name: str, theta0: Tensor, models: list[Tensor], start: int) -> Layer:
        run = self._read(name, theta0, models)._replace(start=start)
        for change, _ in self._changes:
            run = run._replace(taus=change(run))
        return run

    def layer(self, name: str, theta0: Tensor) -> Layer:
        """The layer of that name; theta0 is the pre-trained tensor."""
        if self._changes and theta0.numel() and all(coordinatewise for _, coordinatewise in self._changes):
            runs = [read() for read in self.runs(name, theta0)]  # the task vectors as they were never are in memory
            taus = torch.cat([run.taus for run in runs], dim=1).reshape(-1, *theta0.shape)
            return Layer(name, torch.cat([run.pretrained for run in runs]).reshape(theta0.shape), taus)
        layer = self._read(name, theta0, [model[name].detach() for model in self.finetuned])
        for change, coordinatewise in self._changes:
            if coordinatewise and layer.pretrained.numel():
                taus = torch.cat([change(run) for run in _split(layer)], dim=1).reshape(-1, *theta0.shape)
            else:
                taus = change(layer)
            layer = layer._replace(taus=taus)
        return layer

    def start(self, name: str, theta0: Tensor) -> Layer:
        """The layer of that name without task vectors: nothing is read but theta0, the pre-trained tensor."""
        wide = theta0.to(self.device, torch.promote_types(theta0.dtype, torch.float32))
        return Layer(name, wide, wide.new_empty((0, *wide.shape)))

    def _read(self, name: str, theta0: Tensor, models: list[Tensor]) -> Layer:
        for model, tensor in zip((self.pretrained, *self.finetuned), (theta0, *models), strict=True):
            require_wide(name, tensor, model)
        dtype = torch.promote_types(theta0.dtype, torch.float32)
        start = theta0.to(self.device, dtype)
        taus = torch.empty((len(models), *theta0.shape), dtype=dtype, device=self.device)
        for tau, model in zip(taus, models, strict=True):
            tau.copy_(model) if self._are_deltas else torch.sub(model.to(self.device), start, out=tau)
        if not is_finite(taus, start):
            raise not_finite(name, self.pretrained, self.finetuned)
        return Layer(name, start, taus)

    def check_equal(self, name: str, theta0: Tensor) -> None:
        """ValueError where a buffer differs between the models; the number of batches seen may, and P's is kept."""
        if name.endswith("num_batches_tracked"):
            return
        for model in () if self._are_deltas else self.finetuned:
            if not torch.equal(model[name].to(theta0.device), theta0):
                raise ValueError(
                    f"tensor {name!r} is {theta0.dtype} and differs between {where(self.pretrained)} and "
                    f"{where(model)}; what is no float must agree, for it cannot be merged"
                )


def device_of(tensors: Mapping[str, Tensor]) -> torch.device:
    """Where named tensors are, by the first; those of a file are on the CPU."""
    return CPU if isinstance(tensors, Shaped) else next((tensors[name].device for name in tensors), CPU)


def run_length(tasks: int, place: torch.device) -> int:
    """The number of coordinates of one run of so many task vectors on a device."""
    return max(1, (RUN if place.type == "cpu" else RUN_ELSEWHERE) // tasks)


def _split(layer: Layer) -> Iterator[Layer]:
    """The layer in runs."""
    theta0, taus = layer.pretrained.reshape(-1), layer.taus.reshape(len(layer.taus), -1)
    length = run_length(len(taus), taus.device)
    for start in range(0, theta0.numel(), length):
        place = slice(start, start + length)
        yield Layer(layer.name, theta0[place], taus[:, place], start)
