"""A tiny real world: a BERT of 20,000 random parameters, three easy text tasks, and a configuration that runs on them.

Everything is a file that the workflow reads as it reads a real one. `make(folder)` writes model and tasks,
`config(folder, …)` is a whole configuration, `snakemake(folder, …)` runs the real workflow with it.
"""

import os
import random
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import waiting
import yaml

ROOT = Path(__file__).parents[1]
TASKS = {  # class -> the words that give it away; the first is what the prompt calls it
    "colours": {"warm": ["red", "orange", "yellow", "pink"], "cold": ["blue", "green", "violet", "cyan"]},
    "creatures": {
        "pet": ["dog", "cat", "hamster", "parrot"],
        "farm": ["cow", "sheep", "hen", "goat"],
        "sea": ["whale", "squid", "crab", "seal"],
    },
    "food": {
        "fruit": ["apple", "pear", "plum", "cherry"],
        "bread": ["roll", "toast", "bun", "bagel"],
        "drink": ["tea", "milk", "juice", "water"],
        "sweet": ["cake", "candy", "honey", "jam"],
    },
}
FILLERS = ["the", "a", "we", "saw", "had", "this", "that", "and", "some", "very", "old", "new"]
EXAMPLES = 120  # a task
BACKBONE_OPTIONS = {"max_length": 16, "logit_scale": 10.0}
FINETUNE = {
    "steps": 6,
    "batch_size": 8,
    "lr": {"full": 3.0e-3, "lora": 3.0e-2, "l_lora": 3.0e-2},
    "weight_decay": 0.1,
    "warmup_steps": 1,
    "checkpoint_every": 2,
}
METHODS = {
    "simple_average": {"algorithm": "simple_average"},
    "task_arithmetic": {"algorithm": "task_arithmetic", "hyperparameters": {"scaling": [0.3, 0.6]}},
    "ties": {"algorithm": "ties", "hyperparameters": {"density": 0.2, "aggregation": "mean", "scaling": 1.0}},
    "adamerging_layer_wise": {"algorithm": "adamerging", "hyperparameters": {"granularity": "layer", "steps": 3}},
    "concrete_task_arithmetic": {"algorithm": "concrete", "hyperparameters": {"granularity": "none", "steps": 2}},
    "concrete_layer_wise": {
        "algorithm": "concrete",
        "hyperparameters": {"granularity": "layer", "steps": 2, "adapt_steps": 2},
    },
}


def make(folder: Path) -> Path:
    """The folder, with the model in `bert` and the tasks in `data`; what is there already is kept."""
    if not (folder / "bert").is_dir():
        write_bert(folder / "bert")
    for number, (name, classes) in enumerate(TASKS.items()):
        write_task(folder / "data" / f"{name}.txt", classes, seed=number)
    return folder


def write_bert(folder: Path) -> None:
    """Writes a randomly initialised BERT (hidden 32, 2 layers) and its tokenizer in transformers format."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder.mkdir(parents=True)
    words = [word for classes in TASKS.values() for name, own in classes.items() for word in (name, *own)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *words]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(dict.fromkeys(vocabulary))})
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    no_dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes, **no_dropout)
        config.initializer_range = 0.2  # at the usual 0.02 a network this small embeds all texts alike
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_task(path: Path, classes: Mapping[str, list[str]], seed: int) -> None:
    """Writes distinct lines `class: text`; two words of the class among fillers make a text."""
    rng = random.Random(seed)
    lines: dict[str, None] = {}
    while len(lines) < EXAMPLES:
        name = list(classes)[len(lines) % len(classes)]
        words = [*rng.choice(list(combinations(classes[name], 2))), *rng.sample(FILLERS, 3)]
        rng.shuffle(words)
        lines[f"{name}: {' '.join(words)}"] = None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def task_row(folder: Path, name: str) -> dict[str, Any]:
    """A row of config/tasks.yaml for a tiny task."""
    pattern = r"^(?P<label>\w+): (?P<text>.*)$"
    source = {"folder": str(folder / "data"), "files": {"all": f"{name}.txt"}}
    return {
        "modality": "text",
        "sources": [source | {"format": {"kind": "lines", "pattern": pattern}}],
        "classes": {label: words[0] for label, words in TASKS[name].items()},
        "prompt": "we saw some {}",
    }


def backbone_row(folder: Path) -> dict[str, Any]:
    """A row of config/backbones.yaml for the tiny model."""
    return {
        "kind": "sentence_encoder",
        "sources": [{"folder": str(folder / "bert")}],
        "frozen": ["embeddings.word_embeddings.*", "pooler.*"],
        "target_modules": ["query", "value"],
        "options": BACKBONE_OPTIONS,
    }


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A whole configuration; changes are joined into it key by key, and lists replace lists.

    config(folder, define={"methods": {"ties": {"hyperparameters": {"density": 0.5}}}})
    """
    whole = {
        "run": "tiny",
        "title": "Three tiny tasks",
        "results": str(folder / "results"),
        "seeds": [0],
        "backbones": ["tiny"],
        "modes": ["full", "lora", "l_lora"],
        "suites": ["tiny"],
        "methods": list(METHODS),
        "finetune": FINETUNE,
        "fuse": {"adapted_on": "val", "batch_size": 4, "select_examples": 20},
        "evaluate": {"batch_size": 20, "examples": 20},
        "define": {
            "backbones": {"tiny": backbone_row(folder)},
            "tasks": {name: task_row(folder, name) for name in TASKS},
            "suites": {"tiny": {"tasks": list(TASKS)}},
            "modes": {"lora": {"adapter": {"r": 4, "alpha": 8}}, "l_lora": {"adapter": {"r": 4, "alpha": 8}}},
            "methods": METHODS,
        },
    }
    return join(whole, changes)


def join(base: Any, change: Any) -> Any:
    """The base with the change joined in key by key; lists and values replace one another."""
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        return {**base, **{name: join(base.get(name), value) for name, value in change.items()}}
    return change


@dataclass(frozen=True)
class Finished:
    """What a run of Snakemake returned, printed (both streams), and ran."""

    returncode: int
    output: str

    @cached_property
    def jobs(self) -> list[tuple[str, dict[str, str]]]:
        """(rule, wildcards) of every job that was started; in a dry run (-n), that would be."""
        found = re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)*)", self.output, re.MULTILINE)
        return [(rule, _wildcards(block)) for rule, block in found]

    @property
    def rules(self) -> Counter[str]:
        """How many jobs of each rule; empty where there was nothing to be done."""
        return Counter(rule for rule, _ in self.jobs)


def _wildcards(block: str) -> dict[str, str]:
    line = re.search(r"^ {4}wildcards: (.*)$", block, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in line[1].split(", ")) if line else {}


def command(folder: Path, *arguments: str) -> list[str]:
    """The command line of a run in `folder` with its tiny.yaml, by this interpreter's Snakemake."""
    program = str(Path(sys.executable).with_name("snakemake"))
    where = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    # the profile is quiet about rules; here their names are what is asked for
    quiet = ["--quiet", "host", "reason"]
    return [program, *arguments, *where, "--configfile", str(folder / "tiny.yaml"), *quiet]


def environment() -> dict[str, str]:
    """The environment of a run: this interpreter's programs first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def write_config(folder: Path, **changes: Any) -> Path:
    """The file tiny.yaml of a folder, written anew."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config(folder, **changes), sort_keys=False), encoding="utf-8")
    return path


def snakemake(folder: Path, *arguments: str, **changes: Any) -> Finished:
    """A finished run of the workflow in `folder`: snakemake(folder, "tables", seeds=[0, 1]).

    Arguments are Snakemake's own, `changes` are those of `config`. The first call makes the tiny world.
    """
    make(folder)
    write_config(folder, **changes)
    done = waiting.run(command(folder, *arguments), env=environment(), cwd=folder)
    return Finished(done.returncode, re.sub(r"(.{1000}).+", r"\1 …", done.stdout))  # inputs can be a page long
