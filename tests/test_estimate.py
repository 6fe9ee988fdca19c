"""What `fusion check` reckons: worked examples, every rule and preset, and what rules ask for."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import waiting
import yaml

from fusion.cli import main
from fusion.estimate import merging, rates, stages
from fusion.estimate.asked import Asked
from fusion.estimate.check import check
from fusion.estimate.facts import Model, examples, model
from fusion.estimate.jobs import Jobs
from fusion.estimate.rates import NetworkRates, Rates
from fusion.estimate.table import rules
from fusion.estimate.work import Unknown, Work
from fusion.model_rows import ModelSize
from fusion.plan import ROWS, Plan, read

PRESETS = sorted((ROWS / "presets").glob("*.yaml"))
SIZE = ModelSize(parameters=1000, trained=600, width=8, layers=2, tokens=4)
SMALL = Model(SIZE, trained=600, changed=600, coordinates=600, embeds_texts=True, is_clip=False)
MACHINE = Rates(
    source="a test", is_gpu=False, cores=1, start=1.0, launch=0.0, memory=1e6, disk=1e6, process_mb=100,
    networks={"small": NetworkRates(forward=100, backward=50, backward_adapter=200)}, merges={"ties": 6},
)  # fmt: skip


def plan(**changes: Any) -> Plan:
    """The demo's plan with other settings."""
    return read(tiny.join(yaml.safe_load((ROWS / "config.yaml").read_text()), changes))


def one(**wildcards: str) -> dict[str, str]:
    """The wildcards of one job of the demo, which Snakemake gives as a list with names."""
    return {"backbone": "minilm", "mode": "full", "task": "trec"} | wildcards


def jobs(**changes: Any) -> Jobs:
    return Jobs(plan(**changes), rates.read("cpu"))


def test_fine_tuning_is_a_forward_and_a_backward_pass_an_example_and_holds_four_times_what_trains() -> None:
    work = stages.finetune(SMALL, tasks=2, steps=5, batch_size=3, is_image=False)
    assert (work.forwards, work.backwards, work.batches, work.decoded) == (30, 30, 20, 0)
    # ten steps of gradients, their norm and two moments; the model, gradients and moments, and what a batch keeps
    assert work.traversed == 10 * 12 * 4 * 600 and work.written == 4 * 600
    kept = 3 * 2 * 4 * (34 * 8 + 5 * 8 / 64 * 4)
    assert work.device == 4 * 1000 + 3 * 4 * 600 + kept


def test_fusing_scores_every_candidate_unless_it_is_alone() -> None:
    given: dict[str, Any] = {"batch_size": 4, "adaptive": False, "is_masked": False, "models": 1}
    assert [stages.fuse(SMALL, [10, 20], candidates=n, **given).forwards for n in (1, 3)] == [0, 3 * 30]


def test_prepared_pictures_are_decoded_once_and_read_at_every_pass() -> None:
    sizes = ModelSize(parameters=1000, trained=600, width=8, layers=2, tokens=4, side=32)
    pictures = Model(sizes, 600, 600, 600, embeds_texts=True, is_clip=True)
    made = stages.prepare_pixels(pictures, 100)
    assert (made.decoded, made.written) == (100, 100 * 3 * 32**2)
    scored = stages.evaluate(pictures, [60, 40], batch_size=8)
    assert scored.decoded == 0 and scored.read == made.written + 4 * (1000 + 600)


def test_directions_of_fisher_information_share_a_backward_pass_as_far_as_their_gradients_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "GRADIENTS", 5 * 4 * 600)
    work = stages.fisher(SMALL, directions=12, examples=2, is_image=False)
    assert (work.forwards, work.backwards, work.batches) == (2, 24, 2 * (1 + 3))


def test_an_evaluation_is_a_pass_a_test_example_and_a_row_each() -> None:
    work = stages.evaluate(SMALL, [10, 30], batch_size=8)
    assert (work.forwards, work.batches, work.backwards) == (40, 5, 0)
    assert work.written == 12 * 40 + 2 * stages.FILE_BYTES and work.read == 4 * (1000 + 600)


def test_seconds_are_those_of_passes_memory_files_and_start() -> None:
    work = Work(forwards=200, backwards=100, traversed=3e6, read=1e6, written=1e6, seconds=4)
    assert MACHINE.seconds(work, "small", is_adapter=False) == 1 + (2 + 2) + 3 + 2 + 4
    assert MACHINE.seconds(work, "small", is_adapter=True) == 1 + (2 + 0.5) + 3 + 2 + 4
    with pytest.raises(Unknown, match="large"):
        MACHINE.seconds(work, "large", is_adapter=False)


def test_a_gpu_waits_for_the_host_or_for_launches_where_those_take_longer() -> None:
    networks = {"small": NetworkRates(forward=10, backward=1, decode=2)}
    gpu = MACHINE.model_copy(update={"is_gpu": True, "cores": 4, "launch": 0.5, "networks": networks})
    assert gpu.seconds(Work(forwards=20, batches=2), "small", False) == 1 + 2
    assert gpu.seconds(Work(forwards=20, batches=8), "small", False) == 1 + 4
    assert gpu.seconds(Work(forwards=20, batches=2, decoded=20), "small", False) == 1 + 10


def test_points_of_a_grid_that_differ_in_the_scaling_alone_are_merged_once() -> None:
    grid = [{"density": d, "scaling": s} for d in (0.1, 0.2) for s in (0.5, 1.0, 2.0)]
    assert merging.merges("ties", grid, adaptive=False) == 2 and merging.merges("ties", grid, adaptive=True) == 6
    assert merging.traversed(MACHINE, "ties", grid, 2, SMALL, tasks=4) == 2 * 6 * (4 + 2) * 4 * 600
    solvers = MACHINE.model_copy(update={"merges": {"wudi": 100, "wudi, closed_form": 5}})
    found = [merging.traversed(solvers, "wudi", [{"solver": name}], 1, SMALL, 1) for name in ("adam", "closed_form")]
    assert found[0] == 20 * found[1]


def test_concrete_has_two_objectives_a_step_where_it_learns_coefficients() -> None:
    settings, values = {"batch_size": 3, "loss_examples": 1, "loss_batch": 1}, {"steps": 10, "adapt_steps": 4}
    for granularity, objectives in {"none": 10, "layer": 24}.items():
        grid = [values | {"granularity": granularity}]
        work = merging.passes("concrete", grid, SMALL, 2, settings, is_image=False)
        assert work.forwards == work.backwards == objectives * 2 * 3


def test_a_mode_with_adapters_trains_them_alone_and_changes_the_matrices_that_they_adapt() -> None:
    found = {space: model(plan(), "minilm", "lora", space) for space in ("weight", "adapter")}
    assert found["weight"].trained == 2 * 6 * 2 * 16 * 384 and found["weight"].coordinates == 2 * 6 * 384**2
    assert found["adapter"].coordinates == found["adapter"].trained
    assert model(plan(), "minilm", "full").coordinates == 10_844_928


def test_caps_of_the_task_and_of_the_run_limit_its_examples() -> None:
    capped = plan(define={"tasks": {"trec": {"max_examples": {"val": 100}}}})
    assert [examples(capped, "trec", "val", limit) for limit in (None, 80, 500)] == [100, 80, 100]


def test_every_rule_of_the_workflow_has_a_figure() -> None:
    text = "".join(path.read_text() for path in (tiny.ROOT / "workflow/rules").glob("*.smk"))
    names = re.findall(r"^(?:rule|use rule \w+ as) (\w+)", text, re.MULTILINE)
    assert {"fuse", "evaluate_fused"} <= set(names)
    missing = [name for name in names if name not in ("check", "check_node", "finetune") and not hasattr(Jobs, name)]
    assert not missing, f"say what a job of {missing} takes in fusion/estimate/jobs.py"


@pytest.mark.slow
@pytest.mark.parametrize("config", ["presets/clip_vitb32_robustness.yaml", "presets/text8_all_methods_short.yaml"])
def test_the_numbers_of_jobs_are_those_of_a_dry_run(config: str, tmp_path: Path) -> None:
    path = ROWS / config
    options = ["-n", "--configfile", str(path), "--config", f"results={tmp_path}/results"]
    run = waiting.run([tiny.command(tmp_path)[0], "--snakefile", str(tiny.ROOT / "Snakefile"), *options], cwd=tiny.ROOT)
    assert run.returncode == 0, run.stdout
    shown = dict(re.findall(r"^(\w+) +(\d+)$", run.stdout, re.MULTILINE))
    found = {rule.name: rule.jobs for rule in rules(Jobs(read(yaml.safe_load(path.read_text())), rates.read("cpu")))}
    assert found == {name: int(count) for name, count in shown.items() if name not in ("all", "total")}
    assert "The whole run, modelled at the rates of" in run.stdout


@pytest.mark.parametrize("path", [ROWS / "config.yaml", *PRESETS], ids=lambda path: path.stem)
def test_every_preset_has_a_table_with_a_total(path: Path) -> None:
    lines = list(check(path))
    assert any(line.startswith("fuse ") for line in lines)
    (total,) = [line.split() for line in lines if line.startswith("all ")]
    assert int(total[1].replace(",", "")) > 10


def test_the_command_imports_no_torch() -> None:
    code = "import sys; from fusion.cli import main; main(['check', sys.argv[1]]); print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, str(ROWS / "config.yaml")], capture_output=True, text=True, env=tiny.environment()
    )
    assert run.stdout.splitlines()[-1] == "False", run.stderr


def test_what_is_unknown_is_named_with_where_to_give_it_and_never_counted(tmp_path: Path) -> None:
    config = yaml.safe_load((ROWS / "config.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config | {"suites": ["vision14"], "backbones": ["clip_vitb16"]}))
    lines = list(check(tmp_path / "mine.yaml"))
    (line,) = [line for line in lines if "how many examples" in line]
    assert (
        line.endswith("cifar100, fer2013, flowers102, pcam, pets, stl10") and "`examples` (config/tasks.yaml)" in line
    )
    assert any("passes a second of a backbone" in line and line.endswith("clip_vitb16") for line in lines)
    assert any(line.startswith("finetune_task") and "unknown" in line for line in lines)
    assert [line.split()[2] for line in lines if line.startswith("all")] == ["≥"]


def test_what_rules_ask_for_grows_with_the_model_and_is_a_given_figure_where_it_is_unknown() -> None:
    def memory(parameters: int | None, attempt: int = 1) -> int:
        row = {"parameters": parameters, "trained": parameters} if parameters else None
        size = {"size": row and {**row, "width": 384, "layers": 6, "tokens": 32}}
        asked = Asked(jobs(define={"backbones": {"minilm": size}}))
        return asked.memory("finetune_task", 4321)(one(), attempt)

    few, many = memory(10**7), memory(10**9)
    assert few < 3000 < 1.5 * 16 * 1000 < many and many % 500 == 0
    assert memory(10**7, attempt=3) == 3 * few
    assert memory(None) == 4321


def test_a_time_limit_is_three_times_the_model_s_for_all_jobs_that_share_it() -> None:
    found = jobs(finetune={"steps": 100_000})
    minutes = found.seconds("finetune_task", one()) / 60
    alone, four = (Asked(found).minutes("finetune_task", 7, bundle)(one()) for bundle in (1, lambda w: 4))
    assert alone >= 10 + 3 * minutes > alone / 2 and four >= 10 + 12 * minutes > four / 2
    assert Asked(jobs()).minutes("finetune_task", 7)(one()) == 30
    assert Asked(found).minutes("finetune_task", 7, most=45)(one()) == 45 < alone


def test_the_disk_of_a_job_is_that_of_the_models_it_reads_and_writes() -> None:
    own = {"size": {"parameters": 10**9, "trained": 10**8, "width": 384, "layers": 6, "tokens": 32}}
    large = Asked(jobs(define={"backbones": {"minilm": own}}))
    assert large.disk("finetune_task")(one()) == 1.5 * (4000 + 400)
    assert Asked(jobs()).disk("finetune_task")(one()) == 1000


def test_what_stages_keep_and_draw_is_what_they_are_reckoned_with() -> None:
    from fusion import heads, scoring

    assert stages.KEPT == scoring.KEPT
    classes = 10 * heads.PROTOTYPE_EXAMPLES
    pictures = Model(SIZE, 600, 600, 600, embeds_texts=False, is_clip=False)
    assert stages.make_head(pictures, 2, 1, 10**9).forwards == heads.PROTOTYPE_EXAMPLES
    assert stages.make_head(pictures, classes, 1, 10**9).forwards == classes * heads.OF_A_CLASS


def test_facts_make_no_result_stale() -> None:
    assert not {"examples", "prepared_mb"} & set(plan().rows.tasks["trec"].model_dump())
    assert "size" not in plan().rows.backbones["minilm"].model_dump()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        ([str(ROWS / "config.yaml"), "--device", "h10"], "did you mean 'h100'"),
    ],
)
def test_a_wrong_word_ends_in_a_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *arguments]) in (1, 2)
    assert said in capsys.readouterr().err


def test_rates_of_a_machine_of_ones_own_are_read_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = yaml.safe_load((ROWS / "rates.yaml").read_text())["cpu"] | {"source": "my laptop"}
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump({"laptop": own}))
    given = ["--rates", str(tmp_path / "rates.yaml"), "--device", "laptop", "--markdown"]
    assert main(["check", str(ROWS / "config.yaml"), *given]) == 0
    assert "at the rates of laptop (my laptop)" in (out := capsys.readouterr().out) and "| fuse " in out


def test_the_page_of_costs_is_what_the_command_prints() -> None:
    spec = importlib.util.spec_from_file_location("costs", tiny.ROOT / "docs/costs.py")
    assert spec and spec.loader
    costs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(costs)
    assert costs.page() == costs.PAGE.read_text(encoding="utf-8"), "run python docs/costs.py"
