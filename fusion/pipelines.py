"""Algorithms and pipelines of them, by their names: 'ties', 'dare + ties'. Read from the signatures, without torch.

An algorithm is the function of the same name in `fusion/methods/<name>.py`. What it takes first and what it returns
make its kind, the names of its other positional arguments what it needs, and so which class of method it is.
"""

import ast
from functools import cache
from pathlib import Path

# What a method may take beside task vectors (fusion/needs.py says what each is), and the class that makes it.
NEEDS = {
    "objective": "unlabelled",
    "loss": "labelled",
    "fishers": "labelled",
    "grams": "labelled",
    "merged_grams": "labelled",
}
_KINDS = {"TaskVectors": "transform", "Merged": "merge", "TaskModels": "merge"}
METHODS = Path(__file__).parent / "methods"


@cache
def algorithms() -> tuple[str, ...]:
    """The names of all algorithms, in alphabetical order."""
    return tuple(sorted(p.stem for p in METHODS.glob("*.py") if not p.stem.startswith("_") and _find(p.stem)))


def parts(pipeline: str) -> list[str]:
    """The algorithms of 'dare + ties': each is applied to what the one before it returns."""
    return [part.strip() for part in pipeline.split("+")]


@cache
def kind(algorithm: str) -> str:
    """'transform' (task vectors to task vectors), 'merge' (task vectors to a model), 'adjust' (model to model)."""
    found = signature(algorithm)
    return "adjust" if found.args.args[0].arg == "merged" else _KINDS[_returned(algorithm)]


@cache
def needs(algorithm: str) -> tuple[str, ...]:
    """The names of what an algorithm takes beside task vectors or a merged model."""
    return tuple(argument.arg for argument in signature(algorithm).args.args[1:])


def method_class(pipeline: str) -> str:
    """'multi-model', 'labelled', 'unlabelled' or 'data-free': the first that holds of any part."""
    found = {NEEDS[name] for part in parts(pipeline) for name in needs(part)}
    if any(_returned(part) == "TaskModels" for part in parts(pipeline)):
        return "multi-model"
    return next((name for name in ("labelled", "unlabelled") if name in found), "data-free")


def check_order(pipeline: str) -> None:
    """ValueError where no model comes out of a pipeline, or an adjustment has nothing to adjust."""
    kinds = [kind(part) for part in parts(pipeline)]
    if "merge" not in kinds:
        raise ValueError(f"{pipeline!r} merges nothing; expected a merging method in it, as in '{pipeline} + ties'")
    for part, what, before in zip(parts(pipeline)[1:], kinds[1:], kinds, strict=False):
        if what == "adjust" and before == "transform":
            raise ValueError(f"{pipeline!r}: {part} adjusts a merged model; expected a merging method before it")
    for part in parts(pipeline)[1:]:
        if "merged_grams" in needs(part):
            raise ValueError(f"{pipeline!r}: {part} takes what fine-tuned models feed their layers; expected it first")
    for part in parts(pipeline)[:-1]:
        if _returned(part) == "TaskModels":
            raise ValueError(f"{pipeline!r}: {part} makes a model for every task; expected nothing after it")
    if kinds[0] == "adjust" or kinds[-1] == "transform":
        raise ValueError(f"{pipeline!r}: expected first task vectors, then a merging method, then what adjusts it")


def scaling_name(pipeline: str) -> str:
    """The name of the hyper-parameter that is the factor of the merged task vector."""
    last = [part for part in parts(pipeline) if kind(part) == "merge"][-1]
    return prefix(pipeline, last) + "scaling"


def merged_grams_factor(pipeline: str) -> str | None:
    """The name of the hyper-parameter that the Gram matrices of merged inputs depend on, where it takes those."""
    return next((prefix(pipeline, p) + "off_diagonal" for p in parts(pipeline) if "merged_grams" in needs(p)), None)


def names(algorithm: str) -> list[str]:
    """The names of an algorithm's hyper-parameters."""
    return [argument.arg for argument in signature(algorithm).args.kwonlyargs if argument.arg != "rng"]


def prefix(pipeline: str, part: str) -> str:
    """What the names of a part's hyper-parameters start with: nothing where there is one part alone."""
    return f"{part}." if len(parts(pipeline)) > 1 else ""


@cache
def signature(algorithm: str) -> ast.FunctionDef:
    """The definition of an algorithm's function."""
    found = _find(algorithm)
    assert found is not None, algorithm
    return found


def _returned(algorithm: str) -> str:
    annotation = signature(algorithm).returns
    assert isinstance(annotation, ast.Name), algorithm
    return annotation.id


@cache
def _find(algorithm: str) -> ast.FunctionDef | None:
    tree = ast.parse((METHODS / f"{algorithm}.py").read_text(encoding="utf-8"))
    found = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == algorithm)
    return next(found, None)
