"""What can be asked for by name: algorithms, pipelines of them and rows of config/methods.yaml. No torch here."""

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from fusion.hyperparameters import fields, hyperparameters
from fusion.pipelines import METHODS, algorithms, check_order, kind, method_class, parts, prefix
from fusion.rows import first_error, require

ROWS = Path(__file__).parent.parent / "config" / "methods.yaml"


class Recipe(NamedTuple):
    """A pipeline of algorithms, 'dare + ties', with a value for each of its hyper-parameters."""

    pipeline: str
    values: dict[str, Any]


def recipe(method: str, assignments: Sequence[str]) -> Recipe:
    """The recipe of an algorithm, several joined by '+', or a row, with 'name=value' over its hyper-parameters.

    ValueError for what is unknown, out of range, or needs data beside the models.
    """
    pipeline, given = _find(method)
    check_order(pipeline)
    _require_data_free(pipeline)
    names = fields(pipeline)
    chosen = dict(_assignment(text) for text in assignments)
    require(chosen, names, f"hyper-parameter of {pipeline!r}", f"--set; see 'fusion methods {parts(pipeline)[0]}'")
    for name, value in given.items():
        if name not in chosen and isinstance(value, list) and name not in _lists(pipeline):
            raise ValueError(f"row {method!r} has a grid for {name}: {value}; choose one with --set {name}=VALUE")
    return Recipe(pipeline, _validated(pipeline, given | chosen))


def description(algorithm: str) -> str:
    """The text that its module begins with: title, paper, equation, departures; ValueError where there is none."""
    path = METHODS / f"{algorithm}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(
            f"{path} has no docstring; expected it to begin with one: what the method does in a line, an empty line, "
            "then authors, venue, arXiv id and the equation (see ties.py beside it)"
        )
    return text


def paper(algorithm: str) -> str:
    """Authors, venue and arXiv id."""
    text = " ".join(description(algorithm).partition("\n\n")[2].split())
    found = re.match(r".*?arXiv \d{4}\.\d{4,5}\)?", text) or re.match(r".*?(?=[:;]|\. |$)", text)
    return found[0] if found else ""


def title(algorithm: str) -> str:
    """What the algorithm does, in a line."""
    return " ".join(description(algorithm).partition("\n\n")[0].split())


def of_matrices(algorithm: str) -> bool:
    """Whether it treats matrices alone, and averages what is none, as its description then says."""
    return "other tensors are averaged" in " ".join(description(algorithm).split())


def table() -> str:
    """Every algorithm: name, class, kind, paper, hyper-parameters with defaults."""
    rows = [("name", "class", "kind", "paper", "hyper-parameters")]
    for name in algorithms():
        values = ", ".join(f"{field}={_text(value)}" for field, value in fields(name).items())
        rows.append((name, method_class(name), kind(name), paper(name), values or "–"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def page(method: str) -> str:
    """All there is to know of an algorithm, or of each part of a pipeline."""
    found = []
    for name in [method] if method in algorithms() else parts(_find(method)[0]):
        function = next(n for n in ast.parse((METHODS / f"{name}.py").read_text(encoding="utf-8")).body if _is(n, name))
        assert isinstance(function, ast.FunctionDef)
        lines = [f"{name} ({method_class(name)}, {kind(name)})", "", description(name), ""]
        lines += [ast.get_docstring(function) or "", ""]
        for field, info in hyperparameters(name).model_fields.items():
            lines.append(f"  {field}={_text(info.default)}  {_allowed(info)}".rstrip())
        found.append("\n".join(lines).rstrip())
    return "\n\n\n".join(found)


def _find(method: str) -> tuple[str, dict[str, Any]]:
    """The pipeline of that name and the hyper-parameters that its row gives.

    Algorithms that merge go before rows of their name; the row of one that does not says what it is joined with.
    """
    names = parts(method)
    rows = yaml.safe_load(ROWS.read_text(encoding="utf-8")) if ROWS.is_file() else {}
    joined = method in rows and method in algorithms() and kind(method) != "merge"
    if all(name in algorithms() for name in names) and not joined:
        return " + ".join(names), {}
    if len(names) > 1:
        require(names, algorithms(), "algorithm", "see 'fusion methods'")
    require([method], [*algorithms(), *rows], "method", "see 'fusion methods', or config/methods.yaml")
    return " + ".join(parts(rows[method]["algorithm"])), rows[method].get("hyperparameters") or {}


def _require_data_free(pipeline: str) -> None:
    needed = {"unlabelled": "unlabelled inputs of the tasks", "labelled": "labelled examples or their statistics"}
    for part in parts(pipeline):
        if method_class(part) in needed:
            raise ValueError(
                f"{part} is {method_class(part)}: it needs {needed[method_class(part)]}, and here are only models; "
                "it runs in the workflow, as a row under `methods:` of a configuration (see config/methods.yaml)"
            )


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"got --set {text!r}, expected name=value")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {text!r}: the value is no YAML scalar") from error


def _validated(pipeline: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyper-parameter's value as its type has it; ValueError for one out of range."""
    found: dict[str, Any] = {}
    for part in parts(pipeline):
        start = prefix(pipeline, part)
        own = {name: values[start + name] for name in hyperparameters(part).model_fields if start + name in values}
        try:
            checked = hyperparameters(part)(**own)
        except ValidationError as error:
            raise ValueError(f"--set {start}{first_error(error)}") from error
        found |= {start + name: value for name, value in checked.model_dump().items()}
    return found


def _lists(pipeline: str) -> set[str]:
    """The hyper-parameters whose value is itself a list."""
    each = ((part, name, info) for part in parts(pipeline) for name, info in hyperparameters(part).model_fields.items())
    return {prefix(pipeline, part) + name for part, name, info in each if "list" in str(info.annotation)}


def _is(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == name


def _allowed(info: Any) -> str:
    """The values a hyper-parameter may take."""
    choices = getattr(info.annotation, "__args__", ())
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    limits = [f"{sign} {getattr(m, n)}" for m in info.metadata for n, sign in signs.items() if hasattr(m, n)]
    return f"one of {', '.join(map(str, choices))}" if choices else ", ".join(limits)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
