"""How large the models and the data of a run are, from its rows; what no row says is `Unknown`."""

from dataclasses import dataclass

from fusion.estimate.work import Unknown
from fusion.model_rows import ModelSize
from fusion.plan import Plan

FLOAT = 4  # bytes: weights are stored and merged in float32


@dataclass(frozen=True)
class Model:
    """A backbone in a mode, as it is merged in a space; counts of numbers.

    trained: what a fine-tuned file has; changed: the weights that a model of this mode changes; coordinates: what a
    merging method sees of each model. embeds_texts: heads come of prompts, and not of examples.
    """

    size: ModelSize
    trained: int
    changed: int
    coordinates: int
    embeds_texts: bool
    is_clip: bool

    def activations(self, batch_size: int) -> float:
        """Bytes that a batch keeps for the backward pass, in bfloat16 (Korthikanti et al., 2022, section 4.1)."""
        size = self.size
        heads = size.width / 64
        return batch_size * size.layers * size.tokens * (34 * size.width + 5 * heads * size.tokens)

    def picture_bytes(self) -> int:
        """A prepared picture on disk; 0 of a text."""
        return self.example_bytes() if self.size.side else 0

    def example_bytes(self) -> int:
        """A prepared input in memory: pixels as bytes, or two int64 a token."""
        return 3 * self.size.side**2 if self.size.side else 16 * self.size.tokens


def model(plan: Plan, backbone: str, mode: str = "", space: str = "weight") -> Model:
    """What the rows say of a backbone; of none of its modes, where none is named."""
    row = plan.rows.backbones[backbone]
    size = row.size
    if size is None:
        raise Unknown(backbone, "how large a backbone is: give its row `size` (config/backbones.yaml)")
    adapter = plan.rows.modes[mode].adapter if mode else None
    trained = changed = size.trained
    if adapter:
        matrices = len(row.target_modules) * size.layers  # square ones of transformers: query, key, value, output
        trained, changed = matrices * 2 * adapter.r * size.width, matrices * size.width**2
    coordinates = trained if space == "adapter" else changed
    return Model(size, trained, changed, coordinates, row.kind != "dinov2", row.kind == "clip")


def examples(plan: Plan, task: str, split: str, limit: int | None = None) -> int:
    """How many examples of a task's split are read, at most `limit`."""
    row = plan.rows.tasks[task]
    if split not in row.examples:
        raise Unknown(task, "how many examples the splits of a task have: give its row `examples` (config/tasks.yaml)")
    caps = [row.max_examples.get(split), limit]  # type: ignore[call-overload]
    return min([row.examples[split], *(cap for cap in caps if cap is not None)])


def prepared_bytes(plan: Plan, task: str) -> float:
    """What the prepared task takes on disk."""
    row = plan.rows.tasks[task]
    if row.prepared_mb is None:
        raise Unknown(task, "what a prepared task takes on disk: give its row `prepared_mb` (config/tasks.yaml)")
    return row.prepared_mb * 1e6
