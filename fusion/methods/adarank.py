"""AdaRank: gates on the singular components of every task vector, learned on unlabelled inputs.

Lee et al., ICLR 2026, arXiv 2503.22178, section 4. For each matrix, with τ_t = Σ_i σ_ti u_ti v_tiᵀ:

    min over x, λ of Σ_t E_x H(softmax f_t(x; θ)),   θ_l = θ0_l + Σ_t λ_t^l Σ_i 1[x_ti > 0] σ_ti u_ti v_tiᵀ,

where the gate 1[x > 0] has the gradient of σ(x / temperature) (straight-through), both by one Adam. All other tensors
have λ alone. Defaults are those of the authors' configuration for task arithmetic on CLIP ViT: all components on, x
at ±0.1, temperature 10, λ from 0.3 and, unlike in AdaMerging, not clamped, 10 000 steps (their text models: 5000 at
lr 5e-5). Their code also keeps the best test accuracy of every 500 steps; here the last step counts.

Components that are zero up to rounding have no gate. The authors gate the matrices of attention and MLP alone (and
do not merge the word embeddings of text models); here every matrix has gates.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from fusion.held import held, read, to_host
from fusion.hyperparameters import Density, Rate, Scaling, Steps, Temperature
from fusion.methods._spectrum import each_svd
from fusion.methods.adamerging import as_numbers, by_layer, start, weighted_sum
from fusion.objectives import Objective
from fusion.vectors import Layer, Merged, TaskVectors


class Components(NamedTuple):
    """The singular triples of all tasks of one layer, task after task, K in all."""

    u: Tensor  # (m, K)
    s: Tensor  # (K,)
    v: Tensor  # (n, K)
    task: Tensor  # (K,) which task each is of


def adarank(
    taus: TaskVectors,
    objective: Objective,
    *,
    rng: Generator,
    scaling: Scaling = 0.3,
    density: Density = 1.0,
    temperature: Temperature = 10.0,
    steps: Steps = 10000,
    lr: Rate = 1e-3,
) -> Merged:
    """The model at the learned gates and coefficients, one λ a task and layer (a layer is one named tensor).

    objective: parameters -> mean entropy in nats, summed over the tasks, on its next batches; scaling: the initial
    λ; density: fraction of the singular components, the leading ones, that start switched on; lr: Adam's, of λ and
    of the gates' logits. The diagnostics hold the coefficients and how many components of each task are on.
    """
    layers = held(taus)
    found = {layer.name: decompose(layer) for layer in layers if layer.pretrained.dim() == 2}
    logits = {name: first_logits(parts, len(taus), density) for name, parts in found.items()}
    coefficients = start(layers, "layer", scaling)
    losses = learn(layers, found, logits, coefficients, objective, temperature, steps, lr)
    rows, gates = by_layer(layers, coefficients), {name: gate(x, temperature) for name, x in logits.items()}

    def update(layer: Layer) -> Tensor:
        return gated(layer, rows[layer.name], found, gates)

    def individual(task: int, layer: Layer) -> Tensor:
        return gated(layer, torch.eye(len(layer.taus))[task].to(layer.taus), found, gates)

    names = {layer.name: rows[layer.name].tolist() for layer in layers}
    merged = taus.map(update, {"coefficients": names, "entropy": losses} | ranks(found, gates, len(taus)))
    return replace(merged, individual=individual)


def decompose(layer: Layer) -> Components:
    """The singular triples of one layer of all tasks; u and v are where its task vectors are."""
    triples = list(each_svd(layer.taus.to(layer.pretrained.device)))
    u, s, v = (torch.cat(parts, dim=-1) for parts in zip(*triples, strict=True))
    task = torch.cat([torch.full_like(one, t, dtype=torch.int64) for t, (_, one, _) in enumerate(triples)])
    real = s.nonzero()[:, 0]
    u, v = u[:, real], v[:, real]
    if layer.taus.device != layer.pretrained.device:
        u, v = to_host(u), to_host(v)
    return Components(u, s[real], v, task[real])


def first_logits(parts: Components, tasks: int, density: float) -> Tensor:
    """x (K,): 0.1 for the leading ⌊density · r⌋ components of each task, r the matrix' full rank, −0.1 for others."""
    keep = int(density * min(len(parts.u), len(parts.v)))
    counts = parts.task.bincount(minlength=tasks).tolist()
    place = torch.cat([torch.arange(count) for count in counts]).to(parts.s.device)
    return torch.where(place < keep, 0.1, -0.1).to(parts.s.dtype)


def gate(logits: Tensor, temperature: float) -> Tensor:
    """1[x > 0] with the gradient of σ(x / temperature)."""
    soft = (logits / temperature).sigmoid()
    return soft + ((logits > 0).to(soft) - soft).detach()


def gated(layer: Layer, row: Tensor, found: dict[str, Components], gates: dict[str, Tensor]) -> Tensor:
    """Σ_t λ_t τ̂_t of one layer and its λ (T,): one matrix product, and one for its gradient."""
    if layer.name not in found:
        return weighted_sum(row, layer)
    u, s, v, task = found[layer.name]
    return read(lambda weights, u, v: (u * weights) @ v.T, [u, v], row[task] * gates[layer.name] * s)


def learn(
    layers: list[Layer],
    found: dict[str, Components],
    logits: dict[str, Tensor],
    coefficients: Tensor,
    objective: Objective,
    temperature: float,
    steps: int,
    lr: float,
) -> list[float]:
    """The losses; `logits` and `coefficients` (L, T) are optimised in place."""
    learned = [value.requires_grad_() for value in (coefficients, *logits.values())]
    optimizer, losses = torch.optim.Adam(learned, lr=lr), []
    for _ in range(steps):
        rows, gates = by_layer(layers, coefficients), {name: gate(x, temperature) for name, x in logits.items()}
        params = {layer.name: layer.pretrained + gated(layer, rows[layer.name], found, gates) for layer in layers}
        loss = objective(params)
        gradients = torch.autograd.grad(loss, learned, materialize_grads=True)  # a layer may not matter
        for value, gradient in zip(learned, gradients, strict=True):
            value.grad = gradient
        optimizer.step()
        losses.append(loss.detach())
    for value in learned:
        value.requires_grad_(False)
    return as_numbers(losses)


def ranks(found: dict[str, Components], gates: dict[str, Tensor], tasks: int) -> dict[str, Any]:
    """How many components are on: as a fraction of all, and of each task by layer."""
    on = {name: parts.task[gates[name] > 0.5].bincount(minlength=tasks) for name, parts in found.items()}
    total = sum(len(parts.s) for parts in found.values())
    return {
        "density": sum(int(count.sum()) for count in on.values()) / max(total, 1),
        "rank_by_layer": {name: count.tolist() for name, count in on.items()},
    }
