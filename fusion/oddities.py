"""What is odd about models that can be merged: another base, another configuration, a method that leaves most alone.

Nothing here reads more than a sample of the weights.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from fusion.adapter import CONFIG, is_adapter
from fusion.architecture import UNTIED_FROM, is_head, read_config
from fusion.artifacts import read_json
from fusion.card import model_name
from fusion.catalogue import of_matrices
from fusion.checkpoint import is_float, shape
from fusion.pipelines import parts
from fusion.settings import settings

RUNS, LENGTH = 16, 256  # of neighbouring coordinates, read of each tensor: a page of a file each
DISTANCE, COSINE = 0.5, 0.9  # ‖τ‖ / ‖θ0‖ and cos(θ_t, θ0) that no fine-tuning of a large model comes to
LARGE, UNRELATED = 1 << 20, 0.1  # coordinates; a smaller model may move far, but keeps some of its direction
# The words of a tokenizer by their numbers, in the order of preference where two models have more than one of them
VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def oddities(
    pipeline: str,
    pretrained: Path,
    finetuned: Sequence[Path],
    base: Mapping[str, Tensor],
    models: Sequence[Mapping[str, Tensor]],
) -> Iterator[str]:
    """A line about everything that is odd about the merge of `models`, which were read from `finetuned`.

    The models have the names and shapes of `base`.
    """
    for path, model in zip(finetuned, models, strict=True):
        if not is_adapter(path):  # those name their base, and are it but for a low rank
            yield from _another_base(pretrained, path, base, model)
            yield from _another_configuration(pretrained, path, base)
            yield from _another_vocabulary(pretrained, path)
    yield from _other_labels(pretrained, [path for path in finetuned if not is_adapter(path)])
    yield from _bases_of_adapters(pretrained, [path for path in finetuned if is_adapter(path)])
    yield from _mostly_averaged(pipeline, base)


def _another_base(pretrained: Path, path: Path, base: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> list[str]:
    """A line where the matrices of the model are not near those that it is said to be fine-tuned from."""
    total, count = torch.zeros(4, dtype=torch.float64), 0
    for name in base:
        size = shape(base, name)
        if len(size) >= 2 and is_float(base, name):  # the scales of norms are near 1 in any model
            start, end = _sample(base[name]), _sample(model[name])
            tau, length = end - start, torch.Size(size).numel()
            sums = torch.stack([start @ start, end @ end, start @ end, tau @ tau])
            total += sums * (length / max(1, len(start)))
            count += length
    aa, bb, ab, dd = total.tolist()
    if not aa * bb:
        return []
    distance, cosine = sqrt(dd / aa), ab / sqrt(aa * bb)
    is_odd = distance > DISTANCE or cosine < COSINE if count >= LARGE else cosine < UNRELATED
    return [
        f"{path} is far from {pretrained}: difference {distance:.2g} of its norm, cosine {cosine:.2g} (a sample); it "
        f"may be fine-tuned from another model: see 'fusion show {pretrained} {path}'"
    ] * is_odd


def _sample(tensor: Tensor) -> Tensor:
    """Runs of coordinates at equal distances, as one vector in float64; all of a small tensor."""
    flat = tensor.detach().reshape(-1)
    if len(flat) > RUNS * LENGTH:
        stride = len(flat) // RUNS
        flat = flat[: stride * RUNS].reshape(RUNS, stride)[:, :LENGTH].reshape(-1)
    return flat.double()


def _another_configuration(pretrained: Path, path: Path, base: Iterable[str]) -> Iterator[str]:
    """A line about every setting that both models name and that makes other outputs of the same weights.

    Whether embeddings are tied makes none where P has a head of its own, which the other model then has too.
    """
    has_head = any(map(is_head, base))
    ours, theirs = settings(read_config(pretrained)), settings(read_config(path))
    for key in [key for key in ours if key in theirs]:
        one, two = ours[key], theirs[key]
        if one == two or (key.endswith("tie_word_embeddings") and one is False and has_head):
            continue
        if isinstance(one, dict) and isinstance(two, dict):
            item = next(item for item in sorted(one.keys() | two.keys()) if one.get(item) != two.get(item))
            key, one, two = f"{key}.{item}", one.get(item), two.get(item)
        yield (
            f"{path} has {key} {two!r} in config.json and {pretrained} has {one!r}; that of {pretrained} is kept, "
            "with which the weights may not work"
        )


def _another_vocabulary(pretrained: Path, path: Path) -> Iterator[str]:
    """A line where both have a tokenizer's vocabulary, and a word of both has another number in each."""
    ours, theirs = (file if file.is_dir() else file.parent for file in (pretrained, path))
    name = next((n for n in VOCABULARIES if (ours / n).is_file() and (theirs / n).is_file()), None)
    if name is None or (ours / name).read_bytes() == (theirs / name).read_bytes():
        return
    one, two = _words(ours / name), _words(theirs / name)
    moved = sorted(word for word in one.keys() & two.keys() if one[word] != two[word])
    if moved or not one.keys() & two.keys():
        word = f" (as of {moved[0]!r}: {two[moved[0]]} against {one[moved[0]]})" if moved else ""
        yield (
            f"{path} has another vocabulary in {name} than {pretrained}{word}; that of {pretrained} is kept, with "
            "which the weights may not work"
        )


def _words(file: Path) -> dict[str, int]:
    """The number of every word of a vocabulary; of a binary one nothing but its hash is known."""
    if file.suffix == ".txt":
        return {word: number for number, word in enumerate(file.read_text(encoding="utf-8").splitlines())}
    if file.suffix != ".json":
        return {file.read_bytes().hex(): 0}
    found = read_json(file)
    if file.name == "tokenizer.json":
        found = found.get("model", {}).get("vocab") if isinstance(found, dict) else None
    if isinstance(found, list):  # of unigrams, each with its score
        return {str(one[0] if isinstance(one, list) else one): number for number, one in enumerate(found)}
    return found if isinstance(found, dict) else {}


def _other_labels(pretrained: Path, finetuned: Sequence[Path]) -> Iterator[str]:
    """A line where models have the same classes in other orders, and P does not name any."""
    if settings(read_config(pretrained)).get("id2label"):
        return
    named = [(path, labels) for path in finetuned if (labels := settings(read_config(path)).get("id2label"))]
    for path, labels in named[1:]:
        first, known = named[0]
        if labels != known and sorted(labels.values()) == sorted(known.values()):
            item = next(item for item in labels if labels[item] != known.get(item))
            yield (
                f"{path} has id2label.{item} {labels[item]!r} in config.json and {first} has {known.get(item)!r}; "
                "expected the same order of the classes"
            )


def _bases_of_adapters(pretrained: Path, adapters: Sequence[Path]) -> Iterator[str]:
    """A line where adapters name several bases, and one about each whose base is not named as P is."""
    named = {path: str(read_json(path / CONFIG).get("base_model_name_or_path") or "") for path in adapters}
    bases = {path: _last(name) for path, name in named.items() if name}
    if len(set(bases.values())) > 1:
        each = ", ".join(f"{path}: {named[path]}" for path in bases)
        yield f"the adapters name different bases ({each}); expected adapters of one model"
    for path, name in bases.items():
        if name not in _names(pretrained):
            yield (
                f"{path} is an adapter of {named[path]} and --pretrained is {pretrained}; expected the same model, "
                "if under another name"
            )


def _names(pretrained: Path) -> set[str]:
    """All that P may be called: parts of its path, its name on a hub, what its configuration says of its origin."""
    config = read_config(pretrained)
    origin = [pretrained, *(Path(str(config[key])) for key in ("_name_or_path", UNTIED_FROM) if config.get(key))]
    paths = [form for path in origin for form in (path.absolute(), path.resolve())]
    known = {part.lower().removesuffix(".safetensors") for path in paths for part in path.parts}
    return known | {_last(model_name(path)) for path in paths}


def _last(name: str) -> str:
    """The last part of 'owner/name', of a path, or of a snapshot in the cache of a hub; without capitals."""
    return Path(model_name(Path(name.replace("\\", "/")))).name.lower()


def _mostly_averaged(pipeline: str, base: Mapping[str, Tensor]) -> Iterator[str]:
    """A line where a method of matrices finds few: expert layers or convolutions of more than two dimensions."""
    shapes = [shape(base, name) for name in base if is_float(base, name)]
    total = sum(torch.Size(one).numel() for one in shapes)
    other = sum(torch.Size(one).numel() for one in shapes if len(one) != 2)
    for part in parts(pipeline):
        if 2 * other > total and of_matrices(part):
            yield (
                f"{part} works on matrices, and {100 * other / total:.0f} % of the parameters are in tensors of other "
                "than 2 dimensions (as stacked experts and convolutions are), which it averages instead"
            )
