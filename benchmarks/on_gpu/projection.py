"""GPU-hours of Concrete's table of CLIP ViT-B/32, config/presets/clip_vitb32_ta8.yaml, from the rates measured before.

    T · steps · s a step  +  Σ methods: s of its merges, or its steps · s a step  +  pictures / (pictures a second)

What it leaves out: decoding, files, the start of jobs, heads. Statistics (Fisher, RegMean) count as a bare forward and
backward of one task's batch for every example, which is more than they take.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fusion.hyperparameters import fields
from fusion.pipelines import needs, parts
from fusion.rows import MethodRow
from on_gpu.adaptive import ADAMERGING, CONCRETE_SUM, LAYER_WISE
from on_gpu.evaluation import EVALUATION
from on_gpu.merging import ARITHMETIC
from on_gpu.setup import Figures, Rows, Setup
from on_gpu.training import row

CONFIG = Path(__file__).parents[2] / "config"
# Pictures of the official splits: SUN397, Cars, RESISC45, EuroSAT, SVHN, GTSRB, MNIST, DTD
TEST = 19_850 + 8_041 + 6_300 + 2_700 + 26_032 + 12_630 + 10_000 + 1_880
TRAIN = 19_850 + 8_144 + 18_900 + 21_600 + 73_257 + 26_640 + 60_000 + 3_760
VALIDATION = TRAIN // 10
STATISTICS = 256  # examples a task
TASKS = 8
AT_MOST = 1.0  # GPU-hours


def rows(setup: Setup) -> Rows:
    """The one row."""
    yield "Concrete's table of ViT-B/32, projected", partial(project, setup)


def project(setup: Setup) -> Figures:
    """The hours of every stage, and in all."""
    preset = read("presets/clip_vitb32_ta8.yaml")
    known = read("methods.yaml")
    methods = {name: MethodRow(**known[name]) for name in preset["methods"]}
    seconds = {
        "fine-tuning": TASKS * preset["finetune"]["steps"] * setup.figure(row("full"), "ms") / 1000,
        "merging": sum(merging_seconds(setup, method) for method in methods.values()),
        "evaluation": pictures(methods) / setup.figure(EVALUATION, "pictures/s, further"),
    }
    hours = {f"hours, {stage}": setup.goal(spent / 3600) for stage, spent in seconds.items()}
    return hours | {"hours": setup.goal(sum(seconds.values()) / 3600, at_most=AT_MOST)}


def merging_seconds(setup: Setup, method: MethodRow) -> float:
    """The seconds in which one method makes all its candidates; those of another scaling alone share one merge."""
    algorithm, grid = method.algorithm, method.grid()
    if "objective" in needs(algorithm):
        return adaptive_seconds(setup, algorithm, fields(algorithm) | grid[0])
    if not needs(algorithm):
        return setup.figure(algorithm if algorithm in setup.found else ARITHMETIC, "ms") / 1000
    statistics = STATISTICS * setup.figure(ADAMERGING, "bare ms")
    return (statistics + len(grid) * setup.figure(ARITHMETIC, "ms")) / 1000


def adaptive_seconds(setup: Setup, algorithm: str, values: Mapping[str, Any]) -> float:
    """The seconds of the steps of AdaMerging or Concrete; one λ a task takes about as long as one a layer."""
    step = {"adamerging": ADAMERGING, "concrete": CONCRETE_SUM if values["granularity"] == "none" else LAYER_WISE}
    learned = values["steps"] * setup.figure(step[algorithm], "ms")
    adapts = algorithm == "concrete" and values["granularity"] != "none"
    return (learned + adapts * values.get("adapt_steps", 0) * setup.figure(ADAMERGING, "ms")) / 1000


def pictures(methods: Mapping[str, MethodRow]) -> int:
    """How many are evaluated: test ones by θ0 and by every merged model, each task's by its own model, and validation
    ones by that too, by every candidate, and by what adaptive methods are compared with."""
    candidates = sum(len(method.grid()) for method in methods.values())
    adaptive = sum("objective" in needs(part) for method in methods.values() for part in parts(method.algorithm))
    masked = sum("concrete" in parts(method.algorithm) for method in methods.values())
    return TEST * (2 + len(methods)) + VALIDATION * (1 + candidates + 2 * adaptive + masked)


def read(path: str) -> dict[str, Any]:
    """A file of the configuration."""
    return yaml.safe_load((CONFIG / path).read_text(encoding="utf-8"))
