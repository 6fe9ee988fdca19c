"""What README tells a newcomer to type works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns
from textwrap import dedent

import pytest

REPO = Path(__file__).parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
FUSION = ("-c", "import sys; from fusion.cli import main; sys.exit(main(sys.argv[1:]))")


def block_after(line: str) -> str:
    """The indented block that follows what ends in that line."""
    found = re.search(re.escape(line) + r"\n\n((?: {4}.*\n|\n)+)", README)
    assert found, line
    return dedent(found[1]).strip() + "\n"


def package(folder: Path) -> Path:
    """A copy of the project."""
    for name in ("fusion", "config", "tests"):
        copytree(REPO / name, folder / name, ignore=ignore_patterns("__pycache__"))
    (folder / "pyproject.toml").write_bytes((REPO / "pyproject.toml").read_bytes())
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What Python does in that copy."""
    env = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)


def add_median(folder: Path) -> None:
    code = block_after("`fusion/methods/median.py`:")
    (folder / "fusion/methods/median.py").write_text(code, encoding="utf-8")
    row = block_after("where a list is a grid from which validation data chooses:")
    with (folder / "config/methods.yaml").open("a", encoding="utf-8") as rows:
        rows.write(f"\n{row}")


@pytest.mark.slow
def test_the_method_of_the_readme_is_listed_and_keeps_the_contract(tmp_path: Path) -> None:
    folder = package(tmp_path)
    add_median(folder)
    listing, page = (python(folder, *FUSION, "methods", *name) for name in ([], ["median"]))
    assert listing.returncode == 0, listing.stderr
    (line,) = [line for line in listing.stdout.splitlines() if line.startswith("median ")]
    assert " ".join(line.split()) == "median data-free merge Yin et al., ICML 2018, arXiv 1803.01498 scaling=1.0"
    assert page.returncode == 0 and "The median of the task vectors." in page.stdout
    contract = ["tests/test_methods_contract.py", "-k", "median or every_method_of_the_configuration"]
    tests = python(folder, "-m", "pytest", "-p", "no:cacheprovider", *contract)
    assert tests.returncode == 0 and " passed" in tests.stdout, tests.stdout[-4000:]


@pytest.mark.slow
def test_the_median_of_the_readme_is_the_middle_or_the_mean_of_the_two_in_the_middle(tmp_path: Path) -> None:
    folder = package(tmp_path)
    add_median(folder)
    code = (
        "import torch; from fusion import TaskVectors, methods\n"
        "for values in ([1., 9., 2.], [1., 9., 2., 4.]):\n"
        "    taus = TaskVectors({'w': torch.zeros(1)}, [{'w': torch.tensor([value])} for value in values])\n"
        "    print(methods.median(taus, rng=torch.Generator(), scaling=0.5).tensors()['w'].item())\n"
    )
    found = python(folder, "-c", code)
    assert found.stdout.split() == ["1.0", "1.5"], found.stderr


def test_a_method_without_a_docstring_is_an_error_that_says_what_to_write(tmp_path: Path) -> None:
    folder = package(tmp_path)
    code = block_after("`fusion/methods/median.py`:")
    (folder / "fusion/methods/median.py").write_text(code[code.index("from torch") :], encoding="utf-8")
    found = python(folder, *FUSION, "methods")
    assert found.returncode != 0 and "Traceback" not in found.stderr
    assert re.search(r"fusion/methods/median\.py has no docstring; expected it to begin with one: what", found.stderr)
