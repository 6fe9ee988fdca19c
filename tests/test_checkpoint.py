"""Checkpoints: readable by safetensors itself, aligned, atomic, sharded, and clear about what is wrong with a file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_vectors import Model
from torch import Tensor

from fusion.artifacts import write_json
from fusion.checkpoint import DTYPES, INDEX, Checkpoint, save, save_tensors, shape
from fusion.folder import parse_size
from fusion.sharded import save_folder

MIXED = {
    "flags": torch.tensor([True, False, True]),  # three bytes first: what follows is aligned only by design
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0, 0.5], dtype=torch.float16),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "none": torch.zeros(0, 4),
    "steps": torch.tensor(7),
}


def assert_same(found: Model, expected: Model) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype and torch.equal(found[name], tensor), name


def test_what_is_written_is_read_by_safetensors_and_by_checkpoint(tmp_path: Path) -> None:
    save_tensors(tmp_path / "one.safetensors", MIXED, {"mode": "full"})
    assert_same(load_file(tmp_path / "one.safetensors"), MIXED)
    assert_same(dict(Checkpoint(tmp_path / "one.safetensors")), MIXED)
    assert Checkpoint(tmp_path / "one.safetensors").metadata == {"mode": "full"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_written_as_safetensors_names_it(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"w": torch.tensor([[0, 1], [1, 0]]).to(dtype)}
    save_tensors(tmp_path / "ours.safetensors", tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    assert_same(load_file(tmp_path / "ours.safetensors"), tensors)
    with safe_open(tmp_path / "theirs.safetensors", framework="pt") as theirs:
        assert theirs.get_slice("w").get_dtype() == DTYPES[dtype]


def test_every_tensor_is_aligned_to_its_type_in_the_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "one.safetensors", MIXED)
    data = (tmp_path / "one.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert (8 + size) % 8 == 0
    for name, tensor in MIXED.items():
        assert (8 + size + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0, name


def test_tensors_that_share_memory_or_are_transposed_are_written_in_full(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "one.safetensors", {"transposed": base.T, "row": base[1], "tied": base})
    assert_same(load_file(tmp_path / "one.safetensors"), {"transposed": base.T, "row": base[1], "tied": base})


def test_metadata_may_be_known_only_when_all_tensors_are_written(tmp_path: Path) -> None:
    asked = []

    def stream() -> Iterator[tuple[str, Tensor]]:
        yield "w", torch.ones(3)
        asked.append("written")

    def facts() -> dict[str, str]:
        return {"after": asked[0]}

    save(tmp_path / "one.safetensors", {"w": (torch.float32, (3,))}, stream(), facts)
    assert_same(load_file(tmp_path / "one.safetensors"), {"w": torch.ones(3)})
    assert Checkpoint(tmp_path / "one.safetensors").metadata == {"after": "written"}


def test_writing_consumes_one_tensor_at_a_time(tmp_path: Path) -> None:
    sizes = []

    def stream() -> Iterator[tuple[str, Tensor]]:
        for i in range(3):
            yield f"w{i}", torch.full((1 << 16,), float(i))  # 256 KiB, more than a write buffer
            (part,) = tmp_path.glob(".one.*")
            sizes.append(part.stat().st_size >> 18)

    save(tmp_path / "one.safetensors", {f"w{i}": (torch.float32, (1 << 16,)) for i in range(3)}, stream())
    assert sizes == [1, 2, 3]


def test_an_interrupted_writer_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(2)
        raise KeyboardInterrupt

    layout = {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))}
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "new.safetensors", layout, interrupted())
    assert list(tmp_path.iterdir()) == []
    save_tensors(tmp_path / "old.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "old.safetensors", layout, interrupted())
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
    assert_same(load_file(tmp_path / "old.safetensors"), {"a": torch.zeros(1)})


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.ones(2)},
        {"b": torch.ones(2), "a": torch.ones(2)},
        {"a": torch.ones(3), "b": torch.ones(2)},
        {"a": torch.ones(2).half(), "b": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)},
    ],
    ids=["too few", "another order", "another shape", "another type", "too many"],
)
def test_a_writer_that_leaves_its_layout_writes_nothing(tensors: Model, tmp_path: Path) -> None:
    layout = {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))}
    with pytest.raises(AssertionError):
        save(tmp_path / "one.safetensors", layout, tensors.items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [0, 5, 20, -1], ids=["empty", "no header", "half a header", "a byte short"])
def test_a_truncated_file_is_an_error_that_names_it(cut: int, tmp_path: Path) -> None:
    save_tensors(tmp_path / "whole.safetensors", MIXED)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a whole safetensors file .*; make it again"):
        Checkpoint(tmp_path / "cut.safetensors")


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.safetensors"):
        Checkpoint(tmp_path / "absent.safetensors")


def test_a_folder_stands_for_the_one_model_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 0 of the files"):
        Checkpoint(tmp_path)
    save_tensors(tmp_path / "adapter_model.safetensors", {"a": torch.ones(1)})
    assert list(Checkpoint(tmp_path)) == ["a"]
    save_tensors(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    with pytest.raises(ValueError, match="got 2 of the files"):
        Checkpoint(tmp_path)


def test_a_tensor_that_is_not_there_is_named_with_its_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "one.safetensors", MIXED)
    checkpoint = Checkpoint(tmp_path / "one.safetensors")
    assert "absent" not in checkpoint
    with pytest.raises(KeyError, match=r"'absent' in .*one\.safetensors"):
        checkpoint["absent"]


def test_shapes_are_known_on_disk_and_in_memory(tmp_path: Path) -> None:
    save_tensors(tmp_path / "one.safetensors", MIXED)
    checkpoint = Checkpoint(tmp_path / "one.safetensors")
    assert {name: shape(checkpoint, name) for name in MIXED} == {name: tuple(MIXED[name].shape) for name in MIXED}
    assert shape(MIXED, "weight") == (2, 3) and len(checkpoint) == len(MIXED)


def write_shards(folder: Path, tensors: Model, limit: int) -> list[str]:
    """The names of the files that hold the tensors in shards of at most `limit` bytes."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    save_folder(folder, layout, iter(tensors.items()), limit)
    return sorted(path.name for path in folder.iterdir())


FOUR: Model = {name: torch.full((4,), float(i)) for i, name in enumerate("abcd")}  # 16 bytes each


@pytest.mark.parametrize(("limit", "shards"), [(64, 1), (63, 2), (48, 2), (32, 2), (31, 4), (1, 4)])
def test_shards_hold_at_most_the_limit_and_at_least_one_tensor(limit: int, shards: int, tmp_path: Path) -> None:
    names = write_shards(tmp_path, FOUR, limit)
    if shards == 1:
        assert names == ["model.safetensors"]
    else:
        assert names == [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)] + [INDEX]
    assert_same(dict(Checkpoint(tmp_path)), FOUR)


def test_the_index_of_shards_says_what_transformers_writes(tmp_path: Path) -> None:
    write_shards(tmp_path, FOUR, 48)
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert json.loads((tmp_path / INDEX).read_text()) == {
        "metadata": {"total_parameters": 16, "total_size": 64},
        "weight_map": {"a": one, "b": one, "c": one, "d": two},
    }


def test_a_sharded_folder_reads_as_one_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path, MIXED, 8)
    checkpoint = Checkpoint(tmp_path)
    assert_same(dict(checkpoint), MIXED)
    assert repr(checkpoint) == str(tmp_path / INDEX) and len(checkpoint.files) > 2
    assert checkpoint.metadata == {"format": "pt"} and checkpoint.shape("weight") == (2, 3)
    assert list(checkpoint.only(["half"])) == ["half"] and "absent" not in checkpoint


def test_an_index_that_promises_what_its_shards_lack_is_an_error(tmp_path: Path) -> None:
    write_shards(tmp_path, FOUR, 32)
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_json(tmp_path / INDEX, {"weight_map": {"a": one, "e": two}})
    with pytest.raises(ValueError, match=f"'e' is in {two}, which has no such tensor"):
        Checkpoint(tmp_path)
    (tmp_path / two).unlink()
    with pytest.raises(ValueError, match=f"{two} is missing"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": {}}, {"weight_map": {"a": "../one.safetensors"}}], ids=str)
def test_what_is_no_index_of_files_beside_it_is_an_error(index: object, tmp_path: Path) -> None:
    write_json(tmp_path / INDEX, index)
    with pytest.raises(ValueError, match="is no index of shards"):
        Checkpoint(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin holds pickled weights.*save_file"):
        Checkpoint(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"got 0 of the files .*pytorch_model\.bin is not read.*save_file"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "count"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 << 19), ("100", 100), ("7kb", 7000), ("2B", 2)]
)
def test_sizes_are_read_as_transformers_reads_them(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "5 apples", "-1GB", "0", "GB", "nan"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="expected one like 5GB"):
        parse_size(text)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn], ids=str)
def test_a_type_is_known_as_float_or_not_from_the_header(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2).to(dtype)}, tmp_path / "one.safetensors")
    assert Checkpoint(tmp_path / "one.safetensors").is_float("w") == dtype.is_floating_point
