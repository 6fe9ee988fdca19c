"""Provenance and artifacts: what makes a result stale, and files that are either whole or absent."""

import ast
import importlib.util
import re
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from fusion import artifacts
from fusion.provenance import PACKAGE, _read, code_hash


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to edit."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "fusion", ignore=shutil.ignore_patterns("__pycache__")))


def provenance(package: Path) -> ModuleType:
    """The provenance module of a copy of the package, with nothing remembered but what a text says."""
    spec = importlib.util.spec_from_file_location("provenance_of_the_copy", package / "provenance.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__["_read"] = _read  # which a test need not do again for all that it leaves as it is
    return module


def modules(package: Path) -> list[str]:
    names = [path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py")]
    return [".".join(name.parts).removesuffix(".__init__") for name in names]


def hashes(package: Path) -> dict[str, str]:
    read = provenance(package).code_hash
    return {name: read(name) for name in modules(package)}


@cache
def present() -> dict[str, str]:
    """The hashes of the package as it is, which a fresh copy has too."""
    return hashes(PACKAGE)


def stale(package: Path) -> set[str]:
    """The modules whose hash the edits of a copy have changed."""
    return {name for name, found in hashes(package).items() if present().get(name) != found}


def edit(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\n\nEDITED = True\n", encoding="utf-8")


def test_a_copy_elsewhere_has_the_same_hashes(package: Path) -> None:
    assert stale(package) == set()


def test_an_edit_of_a_method_makes_stale_what_names_it_and_nothing_else(package: Path) -> None:
    edit(package / "methods/tsv_m.py")
    assert stale(package) == {"fusion.methods.tsv_m"}


def test_an_edit_of_a_method_makes_stale_those_that_build_on_it(package: Path) -> None:
    edit(package / "methods/ties.py")
    found = stale(package)
    assert {"fusion.methods.ties", "fusion.methods.emr"} <= found
    assert all(name.startswith("fusion.methods.") for name in found) and "fusion.methods.tsv_m" not in found


def test_an_edit_of_the_algebra_makes_stale_all_that_import_it_and_no_other(package: Path) -> None:
    edit(package / "vectors.py")
    found = stale(package)
    fresh = {"fusion.config", "fusion.provenance", "fusion.modes", "fusion.artifacts", "fusion.hyperparameters"}
    fresh |= {f"fusion.stages.{stage}" for stage in ("finetune", "pretrained", "prepare", "tables")}
    assert found >= {"fusion.vectors", "fusion.methods.ties", "fusion.spaces", "fusion.stages.fuse"}
    assert found >= {"fusion.stages.analyse", "fusion.stages.evaluate"}
    assert not found & fresh


def test_an_edit_of_the_configuration_makes_no_stage_stale(package: Path) -> None:
    edit(package / "config.py")
    found = stale(package)
    assert "fusion.config" in found
    assert not {name for name in found if name.startswith(("fusion.stages", "fusion.methods"))}


def test_comments_docstrings_and_formatting_make_nothing_stale(package: Path) -> None:
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        docstrings = [ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse(text)) if has_docstring(node)]
        for docstring in filter(None, docstrings):
            text = text.replace(f'"""{docstring}"""', '"""Another text."""')
        text = re.sub(r"^( *\w+) = ", r"\1  =  ", text.replace("\n\n\n", "\n\n\n# why\n\n"), flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")
    ast.parse((package / "methods/ties.py").read_text(encoding="utf-8"))
    assert "Another text." in (package / "methods/ties.py").read_text(encoding="utf-8")
    assert {name for name in stale(package) if name.startswith("fusion.methods")} == set()


def has_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)


def test_text_that_is_no_docstring_counts(package: Path) -> None:
    path = package / "stages/fuse.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"accuracy"', '"score"'), encoding="utf-8")
    assert "fusion.stages.fuse" in stale(package)


def test_files_that_are_no_code_make_nothing_stale(package: Path) -> None:
    (package / "README.md").write_text("new")
    assert stale(package) == set()


def test_a_new_module_makes_nothing_stale_until_it_is_imported(package: Path) -> None:
    (package / "methods/my_own.py").write_text("RATE = 0.9\n")
    assert stale(package) == {"fusion.methods.my_own"}


def test_a_new_algorithm_makes_no_other_stale(package: Path) -> None:
    text = (package / "methods/ties.py").read_text(encoding="utf-8")
    (package / "methods/sties.py").write_text(text.replace("def ties(", "def sties("), encoding="utf-8")
    assert stale(package) == {"fusion.methods.sties"}


@pytest.mark.parametrize("path", ["hyperparameters.py", "rows.py", "data/rows.py"])
def test_an_edit_of_what_checks_the_configuration_makes_no_stage_stale(package: Path, path: str) -> None:
    edit(package / path)
    assert stale(package) == {f"fusion.{path.removesuffix('.py').replace('/', '.')}"}


def test_a_hash_of_several_modules_is_that_of_all_they_import(package: Path) -> None:
    read = provenance(package).code_hash
    one = read("fusion.stages.fuse", "fusion.methods.ties")
    assert one == read("fusion.methods.ties", "fusion.stages.fuse")
    assert one not in (read("fusion.stages.fuse"), read("fusion.stages.fuse", "fusion.methods.tsv_m"))


def test_a_module_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no module 'fusion\.stages\.finetun' .*named by a rule"):
        code_hash("fusion.stages.finetun")


def test_the_package_imports_absolutely_so_that_every_import_is_seen() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} line {node.lineno}"


def test_a_new_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "scores.json"
    with artifacts.new_file(target) as path:
        path.write_text("half")
        assert not target.exists()
        assert path.parent == target.parent, "a rename is atomic within one file system"
        path.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_new_file_leaves_nothing_on_an_error_and_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    for already in ([], [target]):
        with pytest.raises(RuntimeError), artifacts.new_file(target) as path:
            path.write_text("half")
            raise RuntimeError
        assert list(tmp_path.iterdir()) == already
        target.write_text("old")
    assert target.read_text() == "old"


def test_a_block_that_writes_no_file_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), artifacts.new_file(tmp_path / "scores.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_appears_when_it_is_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for number in range(2):
        with artifacts.new_folder(target) as folder:
            (folder / f"{number}.txt").write_text("x")
            assert target.exists() == (number == 1)
        assert [path.name for path in target.iterdir()] == [f"{number}.txt"]
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_new_folder_leaves_nothing_on_an_error_and_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with artifacts.new_folder(target) as folder:
        (folder / "old.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), artifacts.new_folder(target) as folder:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [target]
    assert [path.name for path in target.iterdir()] == ["old.txt"]


def test_json_with_a_number_that_is_not_finite_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        artifacts.write_json(tmp_path / "recipe.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_json_is_read_back(tmp_path: Path) -> None:
    value = {"name": "Größe", "values": [1, 2.5, None, True]}
    artifacts.write_json(tmp_path / "a.json", value)
    assert artifacts.read_json(tmp_path / "a.json") == value


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert artifacts.digest({"a": 1, "b": [1, 2]}) == artifacts.digest({"b": [1, 2], "a": 1})
    assert artifacts.digest({"a": 1}) != artifacts.digest({"a": 1.5})


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert artifacts.sha256(tmp_path / "abc") == expected
