"""A benchmark suite for multi-task model fusion.

Its algorithms merge any models that were fine-tuned from one pre-trained model, in a notebook too. Here these are
tiny files; a folder in transformers format, sharded or not, or a `state_dict()` will do as well.

>>> import torch
>>> from fusion import Checkpoint, TaskVectors, methods
>>> pretrained = Checkpoint("pretrained.safetensors")  # tensors are read when they are needed
>>> finetuned = [Checkpoint("dogs.safetensors"), Checkpoint("cats.safetensors")]
>>> pretrained["w"], finetuned[0]["w"], finetuned[1]["w"]
(tensor([1., 1., 1.]), tensor([2., 1., 3.]), tensor([3., 1., 0.]))

A method takes task vectors and a source of randomness, and returns a model that is computed when it is read:

>>> taus = TaskVectors(pretrained, finetuned)
>>> rng = torch.Generator().manual_seed(0)
>>> merged = methods.task_arithmetic(taus, rng=rng, scaling=0.5)
>>> merged.tensors()
{'w': tensor([2.5000, 1.0000, 1.5000])}
>>> merged.save("merged.safetensors")  # one tensor at a time
>>> Checkpoint("merged.safetensors")["w"]
tensor([2.5000, 1.0000, 1.5000])

Methods that change task vectors, or a merged model, compose with those that merge:

>>> trimmed = methods.magnitude_prune(taus, rng=rng, density=0.5)
>>> methods.ties(trimmed, rng=rng, density=1.0).tensors()
{'w': tensor([3., 1., 3.])}
>>> values = {"magnitude_prune.density": 0.5, "ties.density": 1.0}
>>> methods.merge("magnitude_prune + ties", taus, rng=rng, values=values).tensors()
{'w': tensor([3., 1., 3.])}

`help(methods.ties)` says what the hyper-parameters are; `fusion methods ties`, in a shell, the paper and formula too.
"""

import os
from importlib import import_module
from typing import Any

# Large tensors in large pages: the first write to a tensor of 75 MB takes half the time. torch looks once.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Loaded when asked for: reading a configuration must not import torch. Named as text, so that a stage that imports
# one module of this package does not depend on the code of all (fusion.provenance reads import statements).
_PLACES = {
    "Checkpoint": "fusion.checkpoint",
    "Merged": "fusion.merged",
    "TaskModels": "fusion.merged",
    "TaskVectors": "fusion.vectors",
}


def __getattr__(name: str) -> Any:
    if name == "methods":
        return import_module("fusion.methods")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES, "methods"])
