"""Fisher information and Gram matrices of fine-tuned models and of merged ones, and losses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_stages import TASKS, World
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from fusion import fisher_information
from fusion.artifacts import sha256
from fusion.candidates import total_entropy, used
from fusion.checkpoint import Checkpoint
from fusion.data.tasks import TaskData, shuffled
from fusion.fisher_information import Resume, exact_directions, fisher, sampled_direction
from fusion.interruption import Interrupted, ask
from fusion.job import Job, run
from fusion.methods import merge
from fusion.needs import grams, total_loss
from fusion.objectives import entropy
from fusion.spaces import Space, open_space, read_weights
from fusion.suites import Suite
from fusion.vectors import NotApplicable

EXAMPLES = 6


def statistics_job(
    world: World, path: Path, statistic: str, mode: str, space: str = "weight", task: str = "food"
) -> Job:
    """The job that computes one statistic of one fine-tuned model."""
    settings = {"backbone": world.backbone_row, "space": space, "frozen": world.frozen, "statistic": statistic}
    settings |= {"examples": EXAMPLES, "batch_size": 4, "labels": "exact", "seed": 0}
    inputs: dict[str, Any] = {"model": world.model, "finetuned": world.finetuned(mode, task), "data": world.data(task)}
    inputs = {name: str(value) for name, value in (inputs | {"head": world.head(task)}).items()}
    inputs["init"] = [str(folder) for folder in [world.init(mode)] if folder]
    params, wildcards = {"settings": settings, "code": "code"}, {"task": task, "mode": mode, "seed": "0"}
    return Job("fusion.stages.statistics:statistics", inputs, {"statistics": str(path)}, params, wildcards)


def merged_job(world: World, path: Path, mode: str, space: str = "weight", off_diagonal: float = 0.95) -> Job:
    """The job that computes the Gram matrices of merged inputs."""
    job = statistics_job(world, path, "gram", mode, space)
    inputs = job.input | {"finetuned": [str(world.finetuned(mode, task)) for task in TASKS]}
    inputs["data"] = [str(world.data(task)) for task in TASKS]
    params = job.params | {"settings": job.params["settings"] | {"off_diagonal": off_diagonal}}
    wildcards = job.wildcards | {"suite": "all"}
    return replace(
        job, stage="fusion.stages.merged_grams:merged_grams", input=inputs, params=params, wildcards=wildcards
    )


def opened(world: World, mode: str, space: str = "weight", tasks: list[str] = TASKS) -> Space:
    folders = [world.finetuned(mode, task) for task in tasks]
    return open_space(space, world.model, world.init(mode), folders, world.frozen)


def suite(world: World) -> Suite:
    heads = [Checkpoint(world.head(task))["weight"] for task in TASKS]
    return Suite(TASKS, [TaskData(world.data(task)) for task in TASKS], heads)


def parameters(space: Space, task: int = 0) -> dict[str, Tensor]:
    return space.vectors.map(lambda layer: layer.taus[task]).tensors()


@pytest.mark.parametrize(
    "logits", [[0.3, -1.2], [2.0, 0.0, -1.0, 0.5], [40.0, 0.0, -40.0], [-80.0, 0.0, 20.0]], ids=str
)
def test_exact_directions_square_to_the_expectation_over_the_labels(logits: list[float]) -> None:
    z = torch.tensor(logits, dtype=torch.float64)
    p = z.softmax(0)
    scores = torch.eye(len(z), dtype=torch.float64) - p  # ∂ log p_y / ∂z, a row a label
    directions = exact_directions(z)
    assert len(directions) == len(z) - 1
    assert_close(directions.T @ directions, scores.T @ torch.diag(p) @ scores, rtol=1e-6, atol=1e-12)


def test_a_sampled_direction_is_that_of_a_label_as_often_as_the_model_predicts_it() -> None:
    z = torch.tensor([2.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    p, count = z.softmax(0), 1000
    scores = torch.eye(len(z), dtype=torch.float64) - p
    drawn = torch.cat([sampled_direction(z, torch.tensor((i + 0.5) / count)) for i in range(count)])
    labels = torch.cdist(drawn, scores).argmin(1)
    assert_close(drawn, scores[labels])
    assert_close(labels.bincount(minlength=len(z)) / count, p, rtol=0, atol=1.01 / count, check_dtype=False)


@pytest.mark.parametrize(
    ("mode", "space"), [("full", "weight"), ("lora", "weight"), ("lora", "adapter"), ("l_lora", "adapter")]
)
def test_fisher_information_is_the_expected_square_of_each_examples_gradients(
    world: World, tmp_path: Path, mode: str, space: str
) -> None:
    run(statistics_job(world, tmp_path / "fisher.safetensors", "fisher", mode, space))
    found = load_file(tmp_path / "fisher.safetensors")
    opened_space, backbone, head = opened(world, mode, space, ["food"]), world.backbone(), suite(world).heads[2]
    params = {name: tensor.requires_grad_() for name, tensor in parameters(opened_space).items()}
    expected = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    for text in TaskData(world.data("food")).inputs("train", EXAMPLES):
        batch = backbone.collate([text])
        log_p = backbone.logits(opened_space.to_weights(params), batch, head)[0].log_softmax(-1)
        for value in log_p:
            gradients = torch.autograd.grad(value, list(params.values()), retain_graph=True)
            for total, gradient in zip(expected.values(), gradients, strict=True):
                total += value.exp().detach() * gradient.square() / EXAMPLES
    assert found.keys() == expected.keys()
    rounding = 1e-9 * max(tensor.max().item() for tensor in expected.values())  # no output depends on a key's bias
    for name, tensor in expected.items():
        assert_close(found[name], tensor, rtol=1e-3, atol=rounding)


def information(world: World, labels: Any, seeds: Sequence[int] = (0,), classes: int = 0) -> Tensor:
    """All of a model's Fisher information, a row a seed; classes: of a random head in place of the task's own."""
    space, backbone, head = opened(world, "full", "weight", ["food"]), world.backbone(), suite(world).heads[2]
    if classes:
        head = torch.randn(classes, head.shape[1], generator=torch.Generator().manual_seed(classes))
    inputs, nowhere = TaskData(world.data("food")).inputs("train", EXAMPLES), Resume(Path("absent"), "", "")
    made = [
        fisher(backbone, space.to_weights, parameters(space), head, inputs, labels, seed, nowhere)[0] for seed in seeds
    ]
    return torch.stack([torch.cat([tensor.flatten() for tensor in one.values()]) for one in made])


@pytest.mark.slow
def test_sampled_labels_estimate_the_exact_information(world: World) -> None:
    (exact,), drawn = information(world, "exact"), information(world, "sampled", range(40))
    sums = drawn.sum(1)
    assert abs(sums.mean() - exact.sum()) < 3 * sums.std() / len(sums) ** 0.5
    assert torch.cosine_similarity(drawn.mean(0), exact, dim=0) > 0.99


class Launches(TorchDispatchMode):
    """Counts the operations that run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_fisher_information_of_many_labels_takes_no_more_operations_than_of_few(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.device.IS_PLAIN", True)  # as on a GPU
    counts = []
    opened(world, "full", "weight", ["food"])  # fine-tuned now
    for classes in (3, 40):
        with Launches() as launches:
            information(world, "exact", classes=classes)
        counts.append(launches.count)
    assert counts[0] == counts[1] > 0


def test_fisher_information_in_parts_is_that_of_all_directions_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.device.IS_PLAIN", True)
    together = information(world, "exact", classes=7)
    monkeypatch.setattr("fusion.device.IS_PLAIN", False)
    monkeypatch.setattr("fusion.fisher_information.AT_ONCE_ELSEWHERE", 1)
    assert_close(information(world, "exact", classes=7), together, rtol=1e-3, atol=1e-6 * together.max().item())


def test_fisher_information_goes_on_where_it_was_asked_to_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = (statistics_job(world, tmp_path / name, "fisher", "lora") for name in ("whole", "parts"))
    run(whole)

    def keep_and_ask(resume: Resume, totals: Any, done: int, seconds: float) -> None:
        keep(resume, totals, done, seconds)
        if done == 2:
            ask()

    keep = fisher_information._keep
    monkeypatch.setattr(fisher_information, "EVERY", 0.0)
    monkeypatch.setattr(fisher_information, "_keep", keep_and_ask)
    monkeypatch.setattr("fusion.interruption._Request.made", False)
    with pytest.raises(Interrupted):
        run(parts)
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr("fusion.interruption._Request.made", False)
    monkeypatch.setattr(fisher_information, "_keep", keep)
    run(parts)
    assert "resuming at example 2" in capsys.readouterr().out
    one, other = (load_file(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()) and one.keys() == other.keys()
    assert [path.name for path in tmp_path.glob("parts*")] == ["parts"]


def naive_grams(world: World, weights: dict[str, Tensor], task: str) -> dict[str, Tensor]:
    """The mean of x xᵀ over the inputs of every linear layer, text by text, so without padding."""
    backbone = world.backbone()
    rows: dict[str, list[Tensor]] = {}
    for name, layer in backbone.module.named_modules():
        if isinstance(layer, nn.Linear):
            seen = rows.setdefault(f"{name}.weight", [])
            layer.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].flatten(0, -2)))
    for text in TaskData(world.data(task)).inputs("train", EXAMPLES):
        with torch.no_grad():
            functional_call(backbone.module, weights, kwargs=backbone.collate([text]))
    inputs = {name: torch.cat(found) for name, found in rows.items()}
    return {name: x.T @ x / len(x) for name, x in inputs.items()}


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_gram_matrices_are_means_over_tokens_that_are_not_padding(world: World, tmp_path: Path, mode: str) -> None:
    run(statistics_job(world, tmp_path / "gram.safetensors", "gram", mode))
    found = load_file(tmp_path / "gram.safetensors")
    expected = naive_grams(world, read_weights(world.model, world.finetuned(mode, "food")), "food")
    trained = opened(world, mode, tasks=["food"]).vectors.pretrained
    assert found.keys() == expected.keys() & trained.keys()
    assert len(found) == (12 if mode == "full" else 4)  # of two layers: six matrices, or query and value
    assert_close(found, {name: expected[name] for name in found}, rtol=1e-4, atol=1e-5)


def test_statistics_say_what_they_are_and_are_the_same_bytes_again(world: World, tmp_path: Path) -> None:
    for name in ("one", "same"):
        run(statistics_job(world, tmp_path / name, "gram", "full"))
    facts = Checkpoint(tmp_path / "one").metadata
    assert (facts["statistic"], facts["examples"]) == ("gram", str(EXAMPLES))
    assert float(facts["seconds"]) > 0
    assert {"config_hash", "code_version"} <= facts.keys()
    one, same = (load_file(tmp_path / name) for name in ("one", "same"))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())


def test_adapters_have_no_inputs_of_their_own(world: World, tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="space: weight"):
        run(statistics_job(world, tmp_path / "gram.safetensors", "gram", "lora", "adapter"))
    with pytest.raises(NotApplicable, match="lora_A"):
        run(merged_job(world, tmp_path / "merged.safetensors", "lora", "adapter"))


def test_the_entropy_of_one_batch_over_all_tasks_is_that_of_every_task_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.device.precision", lambda: torch.float32)
    backbone, tasks, space = world.backbone(), suite(world), opened(world, "full")
    params = {name: tensor.requires_grad_() for name, tensor in parameters(space).items()}
    objective = total_entropy(backbone, tasks, space, adapted_on="train", batch_size=5, seed=3)
    for step in range(2):
        expected = torch.zeros(())
        for data, head in zip(tasks.data, tasks.heads, strict=True):
            inputs = data.inputs("train")
            order = shuffled(len(inputs), 5, torch.Generator().manual_seed(3))
            chosen = [next(order) for _ in range(step + 1)][-1]
            logits = backbone.logits(params, backbone.collate([inputs[i] for i in chosen]), head)
            expected = expected + entropy(logits).mean()
        found = objective(params)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        gradients = [
            torch.autograd.grad(one, params["encoder.layer.0.output.dense.weight"]) for one in (found, expected)
        ]
        assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_mean_cross_entropy_of_the_tasks_on_their_first_training_examples(world: World) -> None:
    backbone, tasks, space = world.backbone(), suite(world), opened(world, "lora", "adapter")
    loss = total_loss(backbone, tasks, space, examples=5, batch_size=2)
    params, each = parameters(space), []
    for data, head in zip(tasks.data, tasks.heads, strict=True):
        logits = backbone.logits(space.to_weights(params), backbone.collate(data.inputs("train", 5)), head)
        each.append(cross_entropy(logits, data.labels("train", 5)))
    near = {"rtol": 2e-2, "atol": 2e-2}  # where models run in bfloat16
    assert_close(loss(params), torch.stack(each).mean(), **near)
    assert_close(loss(params, [2]), each[2], **near)
    assert loss(params).item() == loss(params).item()


def test_gram_matrices_are_those_of_the_parameters_and_stop_at_the_last_layer_wanted(world: World) -> None:
    params, backbone, prefix = parameters(opened(world, "full"), 2), world.backbone(), "encoder.layer.0."
    batches = [backbone.collate([text]) for text in TaskData(world.data("food")).inputs("train", EXAMPLES)]
    names = [name for name in params if name.startswith(prefix)]
    after: list[object] = []
    last = backbone.module.get_submodule("encoder.layer.1")
    hook = last.register_forward_pre_hook(lambda *_: after.append(1))
    found = grams(backbone, params, batches, names, until_seen=True)
    hook.remove()
    assert not after
    expected = naive_grams(world, params, "food")
    assert found.keys() == {name for name in expected if name.startswith(prefix)}
    assert_close(found, {name: expected[name] for name in found}, rtol=1e-4, atol=1e-5)
    everything = grams(backbone, params, batches, list(reversed(params)), until_seen=True)
    assert [name.split(".")[2] for name in everything] == ["0"] * 6 + ["1"] * 6  # in the order of the network
    assert_close(everything["encoder.layer.0.attention.self.query.weight"], found[next(iter(found))])


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_merged_inputs_are_those_of_a_models_block_behind_the_blocks_that_are_merged(
    world: World, tmp_path: Path, mode: str
) -> None:
    run(merged_job(world, tmp_path / "merged.safetensors", mode))
    found, space, task = Checkpoint(tmp_path / "merged.safetensors"), opened(world, mode), 2
    given = {"merged_grams": found}
    merged = merge("regmean_plus_plus", space.vectors, rng=torch.Generator(), given=given).for_task(0).tensors()
    own = parameters(space, task)
    for block in ("encoder.layer.0.", "encoder.layer.1."):
        weights = merged | {name: own[name] for name in merged if name.startswith(block)}
        expected = naive_grams(world, space.to_weights(weights), TASKS[task])
        names = [name for name in found if name.startswith(block)]
        assert len(names) == (6 if mode == "full" else 2)
        for name in names:
            assert found[name].shape == (len(TASKS), *expected[name].shape)
            assert_close(found[name][task], expected[name], rtol=1e-4, atol=1e-5)


def test_merged_inputs_say_what_they_are_and_how_layers_were_merged(world: World, tmp_path: Path) -> None:
    found = []
    for off_diagonal in (0.5, 0.95):
        path = tmp_path / str(off_diagonal)
        run(merged_job(world, path, "lora", off_diagonal=off_diagonal))
        found.append(Checkpoint(path))
        facts = found[-1].metadata
        assert (facts["statistic"], facts["off_diagonal"]) == ("merged_gram", str(off_diagonal))
        assert float(facts["seconds"]) > 0
        assert {"config_hash", "code_version"} <= facts.keys()
    for off_diagonal, own in zip((0.5, 0.95), found, strict=True):
        assert used(found, "regmean_plus_plus", {"off_diagonal": off_diagonal}) == [own]
        assert used(found, "regmean_plus_plus + lines", {"regmean_plus_plus.off_diagonal": off_diagonal}) == [own]
    first, second = ([name for name in found[0] if f"layer.{block}." in name] for block in (0, 1))
    assert all(torch.equal(found[0][name], found[1][name]) for name in first)  # nothing before it is merged
    assert not any(torch.equal(found[0][name], found[1][name]) for name in second)


def test_layers_that_are_not_asked_for_are_not_run(world: World) -> None:
    assert grams(world.backbone(), {}, ["no batch is looked at"], ["embeddings.word_embeddings.weight"]) == {}


@pytest.mark.parametrize("algorithm", ["fisher", "regmean", "regmean_plus_plus", "lorahub", "greedy_task_arithmetic"])
def test_labelled_methods_merge_fine_tuned_models_from_what_the_stages_give_them(
    world: World, tmp_path: Path, algorithm: str
) -> None:
    space, before = opened(world, "full"), sha256(world.model / "model.safetensors")
    paths = {kind: [tmp_path / f"{kind}.{task}" for task in TASKS] for kind in ("fisher", "gram")}
    for kind, files in paths.items():
        for path, task in zip(files, TASKS, strict=True):
            run(statistics_job(world, path, kind, "full", task=task))
    run(merged_job(world, tmp_path / "merged", "full"))
    given = {
        "fishers": [Checkpoint(path) for path in paths["fisher"]],
        "grams": [Checkpoint(path) for path in paths["gram"]],
        "merged_grams": Checkpoint(tmp_path / "merged"),
        "loss": total_loss(world.backbone(), suite(world), space, examples=4, batch_size=4),
    }
    values = {"steps": 4} if algorithm == "lorahub" else {}
    merged = merge(algorithm, space.vectors, rng=torch.Generator().manual_seed(0), given=given, values=values)
    found = merged.for_task(0).tensors()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    assert any(not torch.equal(found[name], theta0) for name, theta0 in space.vectors.pretrained.items())
    assert sha256(world.model / "model.safetensors") == before
