"""The files that hold the tensors of a path, and what to do where none does."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from fusion.artifacts import read_json
from fusion.folder import PICKLES, inner_models, pickled, unpickle

INDEX = "model.safetensors.index.json"
NAMES = ("model.safetensors", INDEX, "adapter_model.safetensors")


def open_file(file: Path) -> safe_open:
    """A safetensors file; ValueError says what the file is where it is none."""
    if not file.is_file() and file.with_suffix(".bin").is_file():
        file = file.with_suffix(".bin")
    if file.suffix in PICKLES or file.name == "pytorch_model.bin.index.json":
        raise ValueError(f"{file} holds pickled weights, and reading those can run code; {unpickle(file)}")
    if not file.is_file():
        raise ValueError(f"{file} is missing; expected it whole: download or save the model again")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        if file.suffix != ".safetensors":
            what = "is no .safetensors file; expected one, or the folder of a model that has one"
            raise ValueError(f"{file} {what} ({error})") from error
        raise ValueError(f"{file} is not a whole safetensors file ({error}); make it again") from error


def shards(path: Path) -> dict[str, str]:
    """The shard's file name of every tensor."""
    found = read_json(path)
    promised = found.get("weight_map") if isinstance(found, dict) else None
    if not promised or not all(Path(str(name)).name == name for name in promised.values()):
        raise ValueError(f"{path} is no index of shards; expected a `weight_map` to files beside it")
    return promised


def tensor_file(path: Path) -> Path:
    """The file, or in a folder the one file or index by which its tensors are found; ValueError where there is none."""
    if not path.is_dir():
        return path
    found = [path / name for name in NAMES if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    hint = ""
    if found:
        hint = f": {', '.join(file.name for file in found)} are there; give one of them with its path"
    elif file := pickled(path):
        hint = f"; {file.name} is not read, because that can run code; {unpickle(file)}"
    elif inner := inner_models(path):
        hint = f"; the model is in a sub-folder: give {' or '.join(map(str, inner[:5]))}"
    raise ValueError(f"{path}: got {len(found)} of the files {NAMES}, expected exactly one{hint}")
