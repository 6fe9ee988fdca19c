"""Which code made a result: the package files a stage depends on, and their hash."""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# They check the configuration; what they make of it is in a stage's params, which Snakemake compares by itself
CHECKS = {
    "fusion.hyperparameters",
    "fusion.rows",
    "fusion.model_rows",
    "fusion.data.rows",
    "fusion.data.formats",
    "fusion.published",
}


@cache
def code_hash(*modules: str) -> str:
    """A short hash of the given `fusion` modules and of every `fusion` module they import, but for CHECKS.

    Comments, docstrings and formatting do not count, so editing those makes nothing stale.
    """
    found: set[str] = set()
    for module in modules:
        _collect(module, found)
    text = "\n".join(f"{name}:{_source(name)}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _collect(module: str, found: set[str]) -> None:
    if module in found:
        return
    found.add(module)
    for name in _imports(module):
        _collect(name, found)


def _path(module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] != PACKAGE.name:
        return None
    base = PACKAGE.joinpath(*parts[1:])
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _imports(module: str) -> tuple[str, ...]:
    _, names = _read(_text(module))
    return tuple(sorted(name for name in names - CHECKS if _path(name)))


def _source(module: str) -> str:
    return _read(_text(module))[0]


@cache
def _text(module: str) -> str:
    path = _path(module)
    if path is None:
        raise ValueError(f"no module {module!r} in {PACKAGE} (named by a rule's params)")
    return path.read_text(encoding="utf-8")


@cache
def _read(text: str) -> tuple[str, frozenset[str]]:
    """A module's code in one normal form, without docstrings and comments, and all that it imports by name."""
    tree, names = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
    return ast.unparse(tree), frozenset(names)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
