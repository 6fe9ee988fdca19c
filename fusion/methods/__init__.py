"""The fusion algorithms: one a file, each the function of its file's name, so `methods.ties(taus, rng=rng)`.

Three kinds, told by what they take and return: most merge task vectors into a model (`Merged`, or `TaskModels`, one
a task); some transform task vectors, to be merged by another (`dare`); some adjust a merged model (`lines`). So they
compose: `methods.ties(methods.dare(taus, rng=rng), rng=rng)`, which a configuration writes `dare + ties`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from importlib import import_module
from typing import Any

from pydantic import ValidationError
from torch import Generator

from fusion.hyperparameters import hyperparameters
from fusion.pipelines import algorithms, check_order, kind, names, needs, parts, prefix
from fusion.rows import first_error
from fusion.vectors import Merged, TaskModels, TaskVectors


@cache
def load(name: str) -> Callable[..., Any]:
    """The algorithm of that name, which checks its hyper-parameters first, as those of a row are; ValueError names all
    algorithms when there is none of that name."""
    if name not in algorithms():
        raise ValueError(f"unknown algorithm {name!r}; expected one of {', '.join(algorithms())}")
    function = getattr(import_module(f"{__name__}.{name}"), name)

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        _check_types(name, args, given)
        return function(*args, **given | _in_range(name, given))

    return checked


def _check_types(name: str, args: Sequence[Any], given: Mapping[str, Any]) -> None:
    """ValueError saying what to pass in place of what is no task vectors (or merged model), or no generator."""
    is_adjusting = kind(name) == "adjust"
    argument = "merged" if is_adjusting else "taus"
    if args or argument in given:
        state = args[0] if args else given[argument]
        _check_state(name, state, (Merged, TaskModels) if is_adjusting else (TaskVectors,))
    if not isinstance(given.get("rng", Generator()), Generator):
        raise ValueError(
            f"{name}: got rng {given['rng']!r}, expected a generator: pass torch.Generator().manual_seed(0)"
        )


def _check_state(name: str, state: Any, wanted: tuple[type, ...]) -> None:
    if isinstance(state, wanted):
        return
    how = "TaskVectors(P, [A, B])" if wanted == (TaskVectors,) else "what a method that merges returns"
    if wanted == (TaskVectors,) and isinstance(state, Merged):
        how = "its task_vectors()"
    raise ValueError(f"{name}: got {type(state).__name__}, expected {wanted[0].__name__}: pass {how}")


def _in_range(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters among the arguments, as the types of the signature; ValueError for one out of range."""
    own = {key: given[key] for key in names(name) if key in given}
    try:
        typed = hyperparameters(name)(**own)
    except ValidationError as error:
        raise ValueError(f"{name}: {first_error(error)}") from error
    return {key: getattr(typed, key) for key in own}


def merge(
    pipeline: str,
    taus: TaskVectors,
    *,
    rng: Generator,
    given: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Merged | TaskModels:
    """What an algorithm, or several joined by '+', makes of the task vectors.

    given: what its parts need beside them, by the names of their arguments (`fusion.pipelines.NEEDS`).
    values: the hyper-parameters of one algorithm by name, of several as 'dare.density'; defaults otherwise.
    ValueError for a pipeline that merges nothing, and for a name in `values` or a need that is not there.
    """
    if not isinstance(pipeline, str):
        got = type(pipeline).__name__
        raise ValueError(f"merge: got {got}, expected the name of an algorithm, 'ties', and then the task vectors")
    _check_state(pipeline, taus, (TaskVectors,))
    given, values = given or {}, values or {}
    _check(pipeline, given, values)
    state: Any = taus
    for part in parts(pipeline):
        start = prefix(pipeline, part)
        own = {name: values[start + name] for name in names(part) if start + name in values}
        if kind(part) != "adjust" and not isinstance(state, TaskVectors):
            state = state.task_vectors()
        state = load(part)(state, *[given[name] for name in needs(part)], rng=rng, **own)
    return state


def _check(pipeline: str, given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for part in parts(pipeline):
        load(part)
        if missing := [name for name in needs(part) if name not in given]:
            raise ValueError(f"{part} needs {missing[0]!r} in `given` (see fusion.needs and fusion.objectives)")
    check_order(pipeline)
    known = [prefix(pipeline, part) + name for part in parts(pipeline) for name in names(part)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{pipeline} has no hyper-parameter {unknown[0]!r}; expected some of {', '.join(known)}")


# The function under its file's name, where an import of the file leaves the module. By name rather than by import
# statements, for those would make every result depend on the code of every method (fusion.provenance).
globals().update({name: load(name) for name in algorithms()})
