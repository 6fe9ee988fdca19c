"""What is in checkpoints, and how two of them differ: computed tensor by tensor, printed as it is found."""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from fusion.adapter import Adapter, is_adapter
from fusion.checkpoint import DTYPES, Checkpoint, shape
from fusion.parallel import workers

RUN = 1 << 18  # coordinates


def show(paths: Sequence[Path]) -> Iterator[str]:
    """Lines about every tensor of the first checkpoint, then how each other one differs from it.

    An adapter is shown as its factors; after a model that it fits, as the model that it makes of it.
    """
    is_adapter(paths[0])  # refuses a folder that holds a whole model too
    first = Checkpoint(paths[0])
    yield from contents(first)
    for path in paths[1:]:
        yield ""
        is_change = is_adapter(path) and not is_adapter(paths[0])
        yield from differences(first, Adapter(path, first) if is_change else Checkpoint(path))


def contents(model: Mapping[str, Tensor]) -> Iterator[str]:
    """One line a tensor: name, type, shape, Euclidean norm; then the totals."""
    width, count, size, squares = _width(model), 0, 0, 0.0
    yield f"{model!r}: {len(model)} tensors"
    yield f"{'name':<{width}}  type  {'shape':<16}  norm"
    for name, tensor in model.items():
        square = _sums(tensor, tensor)[0]
        yield f"{name:<{width}}  {_type(tensor):<4}  {_shape(tensor):<16}  {sqrt(square):.6g}"
        count, size, squares = count + tensor.numel(), size + tensor.nbytes, squares + square
    yield f"{count:,} parameters, {size:,} bytes, norm {sqrt(squares):.6g}"


def differences(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Iterator[str]:
    """One line a tensor that differs: ‖b − a‖ / ‖a‖ and the cosine of a and b; then those of the whole model."""
    width, same, total = _width(a), 0, torch.zeros(4, dtype=torch.float64)
    yield f"{b!r} against {a!r}"
    yield from (f"missing  {name}" for name in a if name not in b)
    yield from (f"extra    {name}" for name in b if name not in a)
    yield f"{'name':<{width}}  difference  cosine"
    for name in (name for name in a if name in b):
        if shape(a, name) != shape(b, name):
            yield f"{name:<{width}}  shape {shape(b, name)} against {shape(a, name)}"
            continue
        one, two = a[name], b[name]
        sums = torch.tensor(_sums(one, two), dtype=torch.float64)
        total += sums
        other = "" if one.dtype == two.dtype or isinstance(b, Adapter) else f"  type {_type(two)} against {_type(one)}"
        if sums[3] == 0 and not other:
            same += 1
        else:
            yield f"{name:<{width}}  {_ratio(sums)}{other}"
    yield f"{'all that both have':<{width}}  {_ratio(total)}"
    yield f"{same} tensors are equal"


def _sums(a: Tensor, b: Tensor) -> list[float]:
    """Σ a², Σ b², Σ a·b and Σ (b − a)² in float64."""
    total = torch.zeros(4, dtype=torch.float64)
    one, two = a.reshape(-1), b.reshape(-1)

    def of_run(start: int) -> Tensor:
        x, y = one[start : start + RUN].double(), two[start : start + RUN].double()
        return torch.stack([x @ x, y @ y, x @ y, (y - x) @ (y - x)])

    with workers(a.device) as each:
        for found in each(of_run, range(0, one.numel(), RUN)):
            total += found
    return total.tolist()


def _ratio(sums: Tensor) -> str:
    aa, bb, ab, dd = sums.tolist()
    difference = sqrt(dd / aa) if aa else float("inf") if dd else 0.0
    cosine = ab / sqrt(aa) / sqrt(bb) if aa and bb else 0.0
    return f"{difference:<10.4g}  {cosine:.6f}"


def _type(tensor: Tensor) -> str:
    return DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _width(model: Mapping[str, Tensor]) -> int:
    return max((len(name) for name in model), default=4)
