"""The checkpoint of a run of training: parameters and optimizer, so that it goes on to the same bytes."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fusion.artifacts import remove_unfinished
from fusion.checkpoint import Checkpoint, save_tensors
from fusion.job import progress

Parameters = dict[str, nn.Parameter]


def keep(
    path: Path,
    identity: str,
    trained: Parameters,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    losses: list[float],
) -> None:
    """Writes the checkpoint of a run after `step` steps, in the place of the one before it."""
    tensors: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in trained.items():
        tensors[f"parameter.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    save_tensors(path, tensors, {"identity": identity, "step": str(step), "seconds": str(seconds)})


def restore(
    path: Path, identity: str, trained: Parameters, optimizer: torch.optim.Optimizer
) -> tuple[int, float, list[float]]:
    """The steps done, the seconds they took and their losses; (0, 0, []) where no checkpoint is of this run."""
    remove_unfinished(path)
    if not path.is_file():
        return 0, 0.0, []
    kept = Checkpoint(path)
    if kept.metadata["identity"] != identity:
        return 0, 0.0, []
    kinds = {key.partition(".")[0] for key in kept} - {"parameter", "losses"}
    for name, parameter in trained.items():
        parameter.data.copy_(kept[f"parameter.{name}"])
        state = {kind: kept[f"{kind}.{name}"] for kind in kinds if f"{kind}.{name}" in kept}  # none without a gradient
        # Adam keeps its count of steps on the CPU, and its moments beside the parameter
        optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    progress(f"resuming at step {kept.metadata['step']} from {path}")
    return int(kept.metadata["step"]), float(kept.metadata["seconds"]), kept["losses"].tolist()
