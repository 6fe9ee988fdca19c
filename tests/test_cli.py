"""The program `fusion` beside its merges: rows of config/methods.yaml, `methods` and `show`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusion import catalogue
from fusion.checkpoint import save_tensors
from fusion.cli import main
from fusion.pipelines import algorithms, method_class

# --- rows of config/methods.yaml


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "methods.yaml"
    path.write_text(
        "mild_ties: {algorithm: ties, hyperparameters: {density: 0.4, scaling: [0.5, 1.0]}}\n"
        "dare_ties: {algorithm: dare + ties, hyperparameters: {dare.density: 0.7}}\n"
        "ties: {algorithm: ties, hyperparameters: {density: 0.9}}\n"
    )
    monkeypatch.setattr(catalogue, "ROWS", path)


@pytest.mark.usefixtures("rows")
def test_a_row_gives_an_algorithm_other_defaults() -> None:
    found = catalogue.recipe("dare_ties", ["ties.density=0.3"])
    assert found.pipeline == "dare + ties"
    assert found.values["dare.density"] == 0.7 and found.values["ties.density"] == 0.3
    assert found.values["ties.scaling"] == 1.0


@pytest.mark.usefixtures("rows")
def test_a_value_of_a_grid_must_be_chosen() -> None:
    with pytest.raises(
        ValueError, match=r"row 'mild_ties' has a grid for scaling: \[0.5, 1.0\]; choose one with --set"
    ):
        catalogue.recipe("mild_ties", [])
    assert catalogue.recipe("mild_ties", ["scaling=1e-1"]).values["scaling"] == 0.1
    assert catalogue.recipe("mild_ties", ["scaling=0.5"]).values["density"] == 0.4


@pytest.mark.usefixtures("rows")
def test_an_algorithm_goes_before_a_row_of_its_name() -> None:
    assert catalogue.recipe("ties", []).values["density"] == 0.2


def test_a_row_of_the_name_of_an_algorithm_that_does_not_merge_says_what_it_is_joined_with() -> None:
    found = catalogue.recipe("breadcrumbs", ["task_arithmetic.scaling=0.6"])
    assert "task_arithmetic (data-free" not in catalogue.page("breadcrumbs")
    assert found.pipeline == "breadcrumbs + task_arithmetic" and found.values["task_arithmetic.scaling"] == 0.6


def test_without_the_file_of_rows_there_are_algorithms_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "ROWS", tmp_path / "absent.yaml")
    assert catalogue.recipe("tsv_m", []).pipeline == "tsv_m"
    with pytest.raises(ValueError, match="unknown method 'adamerging_layer_wise'"):
        catalogue.recipe("adamerging_layer_wise", [])


def test_a_list_is_no_grid_where_the_hyper_parameter_is_one() -> None:
    assert catalogue.recipe("weighted_average", ["weights=[0.2, 0.8]"]).values["weights"] == [0.2, 0.8]


# --- methods


def test_the_table_has_every_algorithm_with_its_class_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(algorithms())
    for line in lines[1:]:
        assert line.split()[1] == method_class(line.split()[0])
    (ties,) = (line for line in lines if line.startswith("ties "))
    assert re.search(r"arXiv 2306.01708 +density=0\.2, scaling=1\.0", ties)


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_has_a_page_with_its_paper_and_hyper_parameters(name: str) -> None:
    page = catalogue.page(name)
    assert page.startswith(f"{name} (") and catalogue.title(name) and catalogue.paper(name)
    assert all(f"  {field}=" in page for field in catalogue.fields(name))


def test_a_pipeline_has_the_page_of_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "dare+ties"]) == 0
    text = capsys.readouterr().out
    assert "arXiv 2311.03099" in text and "arXiv 2306.01708" in text and "aggregation=mean  one of mean, sum" in text


# --- show


def test_what_is_in_a_checkpoint_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"w": torch.tensor([[3.0, 4.0]]), "s": torch.tensor(5, dtype=torch.int64)}
    save_tensors(tmp_path / "one.safetensors", tensors)
    assert main(["show", str(tmp_path / "one.safetensors")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["w", "F32", "1×2", "5"] in lines and ["s", "I64", "scalar", "5"] in lines
    assert lines[-1] == ["3", "parameters,", "16", "bytes,", "norm", "7.07107"]


def test_what_differs_between_two_checkpoints_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = {"same": torch.ones(3), "empty": torch.zeros(0)}
    one = same | {"w": torch.tensor([3.0, 0.0]), "left": torch.ones(1), "z": torch.ones(2), "half": torch.ones(1)}
    two = same | {
        "w": torch.tensor([0.0, 6.0]),
        "right": torch.ones(1),
        "z": torch.ones(3),
        "half": torch.ones(1).half(),
    }
    save_tensors(tmp_path / "one.safetensors", one)
    save_tensors(tmp_path / "two.safetensors", two)
    assert main(["show", str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors")]) == 0
    text = capsys.readouterr().out.split("two.safetensors against ")[1]
    lines = [re.sub(" +", " ", line) for line in text.splitlines()]
    assert "missing left" in lines and "extra right" in lines and "z shape (3,) against (2,)" in lines
    assert "w 2.236 0.000000" in lines  # ‖(−3, 6)‖ / ‖(3, 0)‖ = √45 / 3
    assert "half 0 1.000000 type F16 against F32" in lines
    assert "all that both have 1.861 0.175412" in lines  # √45 / √(9 + 3 + 1), 4 / √(13 · 40)
    assert lines[-1] == "2 tensors are equal"


def test_an_adapter_is_compared_as_the_model_that_it_makes(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(models / "base"), str(models / "lora")]) == 0
    text = capsys.readouterr().out.split(" against ")[1]
    changed = re.findall(r"^encoder\.layer\.\d\.attention\.self\.(\w+)\.weight", text, re.MULTILINE)
    assert sorted(changed) == ["query", "query", "value", "value"] and "missing" not in text
    assert main(["show", str(models / "lora")]) == 0
    assert "lora_A.weight" in capsys.readouterr().out


# --- as a program
def test_help_errors_and_the_table_of_methods_import_no_torch() -> None:
    code = (
        "import sys; from fusion.cli import main; "
        "codes = [main(['--help']), main(['methods']), main(['methods', 'ties']), main(['merge', 'tiez'])]; "
        "codes += [main(['merge', 'tiez', '--pretrained', 'p', '--finetuned', 'a', '--out', 'o'])]; "
        "print(codes, {'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 2, 2] set()"
