"""The hyper-parameters of a method, read from its signature without importing it (or torch).

A method is the function of the same name in `fusion/methods/<name>.py`. Its keyword-only arguments are its
hyper-parameters; their annotations, from the types below, are the ranges that a config row is checked against.
The names of its positional arguments say what it needs, and so which class of method it is.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

Density = Annotated[float, Field(gt=0, le=1)]  # fraction of coordinates kept
Fraction = Annotated[float, Field(ge=0, le=1)]
Scaling = Annotated[float, Field(ge=-10, le=10)]  # λ, α: factor of a task vector
Rate = Annotated[float, Field(gt=0)]  # learning rate
Temperature = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(ge=0, le=1_000_000)]

_TYPES = {
    **dict(Density=Density, Fraction=Fraction, Scaling=Scaling, Rate=Rate, Temperature=Temperature, Steps=Steps),
    **dict(Literal=Literal, bool=bool, int=int, float=float, str=str),
}
_CLASSES = {(): "data-free", ("objective",): "unlabelled", ("statistics",): "labelled"}
METHODS = Path(__file__).parent / "methods"


@cache
def algorithms() -> tuple[str, ...]:
    """The names of all algorithms, in alphabetical order."""
    return tuple(sorted(p.stem for p in METHODS.glob("*.py") if not p.stem.startswith("_") and _function(p.stem)))


@cache
def method_class(algorithm: str) -> str:
    """'data-free', 'unlabelled' or 'labelled', by what the algorithm takes beside the task vectors."""
    function = _function(algorithm)
    assert function is not None, algorithm
    return _CLASSES[tuple(argument.arg for argument in function.args.args[1:])]


@cache
def hyperparameters(algorithm: str) -> type[BaseModel]:
    """A pydantic model with one field per keyword-only argument of the algorithm but `rng`."""
    function = _function(algorithm)
    assert function is not None, algorithm
    fields: dict[str, Any] = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if argument.arg == "rng":
            continue
        assert argument.annotation is not None and default is not None, f"{algorithm}.{argument.arg}"
        annotation = eval(ast.unparse(argument.annotation), {"__builtins__": {}}, _TYPES)
        fields[argument.arg] = (annotation, ast.literal_eval(default))
    return create_model(algorithm, __config__=ConfigDict(extra="forbid"), **fields)


def choices(model: type[BaseModel], name: str) -> tuple[Any, ...]:
    """The values a Literal field may take; () for any other."""
    return get_args(model.model_fields[name].annotation)


@cache
def _function(algorithm: str) -> ast.FunctionDef | None:
    tree = ast.parse((METHODS / f"{algorithm}.py").read_text(encoding="utf-8"))
    found = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == algorithm)
    return next(found, None)
