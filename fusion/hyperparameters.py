"""The hyper-parameters of a method, read from its signature without importing it (or torch).

The keyword-only arguments of an algorithm's function are its hyper-parameters; their annotations, from the types
below, are the ranges that a config row is checked against.
"""

import ast
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, create_model, field_validator

from fusion.pipelines import parts, prefix, signature

Density = Annotated[float, Field(gt=0, le=1)]  # fraction of coordinates kept
Fraction = Annotated[float, Field(ge=0, le=1)]
Scaling = Annotated[float, Field(ge=-10, le=10)]  # λ, α: factor of a task vector
Rate = Annotated[float, Field(gt=0)]  # learning rate
Temperature = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(ge=0, le=1_000_000)]

_TYPES = {
    **dict(Density=Density, Fraction=Fraction, Scaling=Scaling, Rate=Rate, Temperature=Temperature, Steps=Steps),
    **dict(Literal=Literal, Annotated=Annotated, Field=Field, bool=bool, int=int, float=float, str=str, list=list),
    **{"None": None},
}


class _Values(BaseModel):
    """The values of hyper-parameters: numbers are finite, and a truth value is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, list) else [value]
        if cls.model_fields[str(info.field_name)].annotation is not bool and any(isinstance(v, bool) for v in values):
            raise ValueError(f"got {value}, expected a number")
        return value


def fields(pipeline: str) -> dict[str, Any]:
    """The hyper-parameters of all parts with their defaults: 'density', or 'dare.density' of several parts."""
    return {
        prefix(pipeline, part) + name: field.default
        for part in parts(pipeline)
        for name, field in hyperparameters(part).model_fields.items()
    }


@cache
def hyperparameters(algorithm: str) -> type[BaseModel]:
    """A pydantic model with one field per keyword-only argument of the algorithm but `rng`."""
    arguments = signature(algorithm).args
    found: dict[str, Any] = {}
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if argument.arg == "rng":
            continue
        assert argument.annotation is not None and default is not None, f"{algorithm}.{argument.arg}"
        annotation = eval(ast.unparse(argument.annotation), {"__builtins__": {}}, _TYPES)
        found[argument.arg] = (annotation, ast.literal_eval(default))
    return create_model(algorithm, __base__=_Values, **found)


def choices(model: type[BaseModel], name: str) -> tuple[Any, ...]:
    """The values a Literal field may take; () for any other."""
    return get_args(model.model_fields[name].annotation)
