"""Model folders in transformers format: what else is in them beside weights."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf"),
    *(".npz", ".ot", ".tflite", ".mlmodel", ".zip", ".tar", ".gz"),
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OF_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.\w+")  # pickled, and no weights
INSIDE = ("model.safetensors", "model.safetensors.index.json", "adapter_config.json")  # what makes a folder a model
EXPORTS = ("onnx", "openvino", "coreml", "original", "metal")  # sub-folders: the same weights for other programs
SMALL = 100 * 10**6  # bytes: a tokenizer of 250,000 words has 20 MB
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of '5GB' (10⁹) or '4GiB' (2³⁰); ValueError for anything else, or nothing."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip(), re.IGNORECASE)
    count = float(match[1]) * UNITS.get(match[2].upper(), 0) if match else 0
    if count < 1:
        raise ValueError(f"got size {text!r}, expected one like 5GB, 500MB or 4GiB")
    return int(count)


def companions(folder: Path) -> Iterator[Path]:
    """Configuration, tokenizer, vocabulary and code of a model; not its weights, their index or its model card.

    Those of its sub-folders too, such as sentence-transformers' 1_Pooling; of exports none. ValueError names a
    sub-folder that holds weights: the model would not be whole without them.
    """
    return (path for path in _beside_weights(folder) if path.stat().st_size <= SMALL)


def large(folder: Path) -> list[str]:
    """The files that would be companions if they were smaller: what they are is not known, and they are not copied."""
    return [str(path.relative_to(folder)) for path in _beside_weights(folder) if path.stat().st_size > SMALL]


def _beside_weights(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in EXPORTS:
            for inner in _inside(path):
                if inner.suffix in WEIGHTS:
                    raise ValueError(_of_weights(folder, inner))
                yield inner
        is_weights = path.suffix in WEIGHTS or path.name.endswith(".index.json")
        is_about = path.name.startswith(".") or path.name.upper() == "README.MD"
        if path.is_file() and not is_weights and not is_about:
            yield path


def exports(folder: Path) -> list[str]:
    """The sub-folders that hold the same weights for other programs, and are never copied."""
    return [name for name in EXPORTS if (folder / name).is_dir()]


def model_class(config: Mapping[str, Any]) -> str | None:
    """The class of transformers that a config.json names; None where it names none, or the code is the model's own."""
    import transformers  # here, because it takes a second and only errors ask

    name = next(iter(config.get("architectures") or ()), None)
    is_known = isinstance(name, str) and "auto_map" not in config and hasattr(transformers, name)
    return name if is_known else None


def unused(config: Mapping[str, Any]) -> Iterable[str] | None:
    """Patterns of tensors that a model's class passes over in its files, such as layers that predict further words.

    None where transformers has no such class.
    """
    import transformers

    name = next(iter(config.get("architectures") or ()), None)
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    return None if kind is None else getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()


def pickled(folder: Path) -> Path | None:
    """The file of a folder that holds pickled weights, the first of several; None where there is none."""
    found = [file for file in sorted(folder.iterdir()) if file.suffix in PICKLES and not OF_TRAINING.match(file.name)]
    return next((file for file in found if file.name.startswith("pytorch_model")), found[0] if found else None)


def unpickle(file: Path) -> str:
    """How to make safetensors of pickled weights with every tensor under its name, as the end of an error."""
    folder, config = file.parent, file.parent / "config.json"
    is_model = file.name.startswith("pytorch_model")
    name = model_class(json.loads(config.read_text(encoding="utf-8"))) if is_model and config.is_file() else None
    if name:
        return (
            "convert it where you trust it, and give NEW in its place (with a copy of the tokenizer, if there is one): "
            f"from transformers import {name}; {name}.from_pretrained({str(folder)!r}).save_pretrained(NEW)"
        )
    target = folder / "model.safetensors" if is_model else file.with_suffix(".safetensors")
    files = f"Path({str(folder)!r}).glob('pytorch_model*.bin')" if is_model else f"[Path({str(file)!r})]"
    is_beside = is_model or target.name == "adapter_model.safetensors"
    return (
        f"convert it where you trust it, and give {folder if is_beside else target}: "
        "import torch; from pathlib import Path; from safetensors.torch import save_file; "
        f"state = {{n: t for file in {files} for n, t in torch.load(file, 'cpu', weights_only=True).items()}}; "
        f"save_file({{n: t.clone().contiguous() for n, t in state.items()}}, {str(target)!r}, {{'format': 'pt'}})"
    )


def inner_models(folder: Path) -> list[Path]:
    """The sub-folders that are models or adapters, as PEFT writes an adapter that has a name."""
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [path for path in inner if any((path / name).is_file() for name in INSIDE)]


def _inside(folder: Path) -> Iterator[Path]:
    """All files in a folder and those in it, but hidden ones; a link that leads back up is not followed."""
    here = folder.resolve()
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in (here, *here.parents):
            yield from _inside(path)


def _of_weights(folder: Path, file: Path) -> str:
    inner = file.relative_to(folder)
    return (
        f"{folder}: the sub-folder {inner.parts[0]!r} holds weights ({inner}), which are not merged; expected weights "
        f"beside config.json alone: give a copy of {folder} without {inner.parts[0]!r}, and add what you want of it to "
        "the merged folder"
    )


def copy_companions(source: Path, target: Path, dtype: str | None) -> None:
    """Copies them into the folder `target`; config.json says that the weights are `dtype`, where one is given."""
    for path in companions(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    config = target / "config.json"
    if dtype and config.is_file():
        value = _with_dtype(json.loads(config.read_text(encoding="utf-8")), dtype)
        if not {"dtype", "torch_dtype"} & value.keys():
            value["torch_dtype"] = dtype  # every version of transformers reads this name
        config.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _with_dtype(value: Any, dtype: str) -> Any:
    """The configuration with this dtype wherever one is named, in those of its parts too."""
    if not isinstance(value, dict):
        return value
    named = {"dtype", "torch_dtype"}
    return {k: dtype if k in named and isinstance(v, str) else _with_dtype(v, dtype) for k, v in value.items()}
