import re
from pathlib import Path

from fusion.artifacts import read_json


def pixels(backbone, tasks, split, condition=""):
    """The pictures of tasks as a backbone takes them; nothing of texts, and of training pictures only what is asked."""
    return [path for task in tasks for path in one_tasks_pixels(backbone, task, split, condition)]


@cache
def one_tasks_pixels(backbone, task, split, condition):
    if PLAN.rows.tasks[task].modality != "image" or PLAN.pictures(split) == 0:
        return []
    pictures = data(task, condition if split == "test" else "")  # which alone is ever corrupted
    return [f"{SHARED}/pixels/{Path(pictures).name}/{Path(pretrained(backbone)).name}/{split}"]


def tested_pixels(w):
    return pixels(w.backbone, tested(w), "test", PLAN.rows.suites[w.suite].condition)


def fused_pixels(w):
    """What choosing, adapting and a labelled search read of each task."""
    adapted = [settings["adapted_on"] for settings in [PLAN.adapt(w.method)] if settings]
    splits = dict.fromkeys(["val", *adapted, *(["train"] if "loss" in PLAN.labelled(w.method) else [])])
    condition = PLAN.rows.suites[w.suite].condition
    return [path for split in splits for path in pixels(w.backbone, suite(w.suite), split, condition)]


def pixels_before(w):
    """Those that the run's backbones before this one take: where they take the same, they share one file."""
    before = PLAN.config.backbones[: PLAN.config.backbones.index(w.backbone)]
    return [f"{SHARED}/pixels/{w.data}/{Path(pretrained(name)).name}/{w.split}" for name in before]


def pictures(w):
    """How many pictures of a split: as many as this run reads, and no fewer than another run had prepared."""
    made = Path(f"{SHARED}/pixels/{w.data}/{w.backbone}-{w.weights}/{w.split}/info.json")
    asked = [PLAN.pictures(w.split), *([read_json(made)["examples"]] if made.is_file() else [])]
    return None if None in asked else max(asked)


def reckoned(w):
    """The wildcards with those by which a job of this rule is reckoned."""
    task, corruption = re.fullmatch(r"(.+)-[0-9a-f]{8}(?:\.(.+))?", w.data).groups(default="")
    return {"backbone": w.backbone, "split": w.split, "task": task, "corruption": corruption}
