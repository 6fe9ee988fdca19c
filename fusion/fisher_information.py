"""The diagonal of a model's Fisher information F = E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ)², resumable to the bit.

Matena and Raffel, NeurIPS 2022, arXiv 2111.09832, section 3: gradients are squared example by example. With g_c the
gradient of logit z_c, ∂ log p_y = Σ_c (1[c = y] − p_c) g_c. The expectation over labels y is

exact      a sum over C − 1 directions v of the logits, (∂ v·z)² each: `exact_directions`;
sampled    what one label drawn from p(y|x) shows of it: one direction, e_y − p. Its mean over draws is the exact one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusion.ahead import ahead
from fusion.artifacts import remove_unfinished
from fusion.backbones import Backbone
from fusion.checkpoint import Checkpoint, save_tensors
from fusion.device import compiles, on_device
from fusion.interruption import Interrupted, asked, listening
from fusion.job import progress

Labels = Literal["exact", "sampled"]
AT_ONCE = {"cuda": 4 << 30}  # bytes of gradients that are held together, by the type of a device
AT_ONCE_ELSEWHERE = 256 << 20
EVERY = 60.0  # seconds from one record of the sums to the next


class Resume(NamedTuple):
    """Where the sums of an unfinished run are kept, what makes them those of this run, and what a line calls it."""

    path: Path
    identity: str
    label: str


def fisher(
    backbone: Backbone,
    to_weights: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    params: Mapping[str, Tensor],
    head: Tensor,
    inputs: Sequence[Any],
    labels: Labels,
    seed: int,
    resume: Resume,
) -> tuple[dict[str, Tensor], float]:
    """The mean of the squares over the inputs, by name, each of its tensor's shape; the seconds of earlier runs.

    to_weights: parameters -> the weights of the backbone that they read as. Asked to end early, it keeps its sums and
    raises Interrupted; in between nobody waits for the device.
    """
    coordinates = {name: tensor.requires_grad_() for name, tensor in params.items() if tensor.is_floating_point()}
    totals = {name: torch.zeros_like(tensor) for name, tensor in coordinates.items()}
    directions = _directions(labels, torch.rand(len(inputs), generator=Generator().manual_seed(seed)).to(head.device))
    done, spent = _restore(resume, totals)
    began = kept = time.monotonic()
    batches = ahead(lambda i: backbone.collate([inputs[i]]), range(done, len(inputs)))
    with listening():
        for i, batch in enumerate(batches, done):
            with sdpa_kernel(SDPBackend.MATH):  # the others take one direction after the other
                (logits,) = backbone.logits(on_device(to_weights(params)), batch, head)
            _add_squares(totals, coordinates, logits, directions(i, logits.detach()))
            now = time.monotonic()
            if i + 1 < len(inputs) and (asked() or now - kept > EVERY):
                _keep(resume, totals, i + 1, spent + now - began)
                left = (now - began) / (i + 1 - done) * (len(inputs) - i - 1)
                progress(f"{resume.label}: {i + 1} of {len(inputs)} examples, {left:.0f} s left")
                kept = now
                if asked():
                    raise Interrupted
    return {name: (total / len(inputs)).cpu() for name, total in totals.items()}, spent


def _directions(labels: Labels, draws: Tensor) -> Callable[[int, Tensor], Tensor]:
    """(number of an example, its logits (C,)) -> directions (k, C); draws: a number in [0, 1) for each example."""
    if labels == "exact":
        return lambda _, logits: exact_directions(logits)
    return lambda i, logits: sampled_direction(logits, draws[i])


def exact_directions(logits: Tensor) -> Tensor:
    """Directions v of the logits z (C,) with Σ_v (∂ v·z)² = E_{y ~ softmax z} (∂ log softmax(z)_y)²: (C − 1, C).

    Any v with Σ v vᵀ = Σ_y p_y (e_y − p)(e_y − p)ᵀ = diag p − p pᵀ = D (I − u uᵀ) D will do, u = √p and D = diag u.
    The Householder reflection that takes e_0 to −u has orthonormal rows; all but the first are orthogonal to u. So one
    direction fewer than there are labels is enough: half the work where there are two.
    """
    u = logits.double().softmax(-1).sqrt()
    normal = torch.cat([u[:1] + 1, u[1:]])
    reflection = torch.eye(len(u), dtype=u.dtype, device=u.device) - torch.outer(normal, normal) / normal[0]
    return (reflection[1:] * u).to(logits)


def sampled_direction(logits: Tensor, draw: Tensor) -> Tensor:
    """e_y − p with y ~ p = softmax z of logits z (C,), the draw being in [0, 1): (1, C)."""
    p = logits.double().softmax(-1)
    label = (p.cumsum(-1)[:-1] <= draw).sum()
    return (torch.arange(len(p), device=p.device).eq(label).to(p) - p)[None].to(logits)


def _add_squares(
    totals: Mapping[str, Tensor], coordinates: Mapping[str, Tensor], logits: Tensor, directions: Tensor
) -> None:
    """Adds Σ_v (∂ v·z / ∂θ)² to the totals: as many directions at once as memory is for."""
    leaves = list(coordinates.values())

    def gradients(direction: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(logits, leaves, direction, retain_graph=True, materialize_grads=True)

    for part in _parts(directions, sum(tensor.nbytes for tensor in leaves)):
        for total, found in zip(totals.values(), vmap(gradients)(part), strict=True):
            _add(total, found)


def _add(total: Tensor, found: Tensor) -> None:
    """Adds the squares of (k, *shape) to the total (*shape); on the CPU in one pass over each of the k."""
    if compiles(total.device):
        for one in found:
            total.addcmul_(one, one)
    else:
        total.add_(found.square().sum(0))


def _parts(directions: Tensor, size: int) -> Iterator[Tensor]:
    """The directions, so many together that their gradients of `size` bytes each fit."""
    room = AT_ONCE.get(directions.device.type, AT_ONCE_ELSEWHERE)
    return iter(directions.split(max(1, room // size)))


def _keep(resume: Resume, totals: Mapping[str, Tensor], done: int, seconds: float) -> None:
    facts = {"identity": resume.identity, "done": str(done), "seconds": str(seconds)}
    save_tensors(resume.path, totals, facts)


def _restore(resume: Resume, totals: Mapping[str, Tensor]) -> tuple[int, float]:
    """The number of examples whose squares are in the totals now, and the seconds that they took; (0, 0) where no
    record is of this run."""
    remove_unfinished(resume.path)
    if not resume.path.is_file() or (kept := Checkpoint(resume.path)).metadata["identity"] != resume.identity:
        return 0, 0.0
    for name, total in totals.items():
        total.copy_(kept[name])
    progress(f"{resume.label}: resuming at example {kept.metadata['done']} from {resume.path}")
    return int(kept.metadata["done"]), float(kept.metadata["seconds"])
