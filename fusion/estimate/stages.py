"""What each stage reads, computes and writes: one function a stage, of sizes alone.

Beside `fusion/stages`, whose functions have the same names, and not in them: what is said here makes no result stale,
and needs no torch. Memory of weights that are read from files counts as resident, as mapped files are. Stages that are
given no GPU hold all in the host's.
"""

from collections.abc import Sequence
from math import ceil

from fusion.estimate.facts import FLOAT, Model
from fusion.estimate.work import Work

KEPT = 256 << 20  # bytes of a task's batches that stay in memory (fusion/scoring.py)
GRADIENTS = 4 << 30  # bytes of gradients that are held together on a GPU (fusion/fisher_information.py)
BLOCK = 256  # pictures that are prepared together (fusion/stages/pixels.py)
RESAMPLES = 2000
ROW_BYTES = 12  # of a prediction on disk
FILE_BYTES = 30_000  # a parquet file's schema and statistics, and what is written beside a model
OPTIMIZER = 12  # times that what trains crosses memory in a step: gradients, their norm, AdamW's moments


def fetch_archive() -> Work:
    """A package's file: how large it is, only the index knows."""
    return Work(seconds=1.5)


def prepare_task(examples: int, stored: float, is_image: bool) -> Work:
    """Reads all examples of a task, hashes them and writes them as Arrow; texts are several times in memory."""
    return Work(
        seconds=0.2 + 5e-5 * examples,
        decoded=examples * is_image,
        written=stored,
        host=1e8 + (1 if is_image else 5) * stored,
    )


def corrupt_task(tests: int, side: int) -> Work:
    """Decodes and corrupts every test picture, and stores it uncompressed; the rest is shared."""
    return Work(decoded=tests, seconds=0.05 * tests, written=3.0 * side**2 * tests, host=5e8)


def prepare_pixels(model: Model, pictures: int) -> Work:
    """Decodes, resizes and writes pictures, block by block."""
    written = pictures * model.example_bytes()
    return Work(decoded=pictures, written=written, host=2e8 + 2.0 * BLOCK * model.example_bytes())


def prepare_backbone(model: Model) -> Work:
    """Writes θ0 in float32; CLIP's text tower beside it is about as large."""
    stored = (1 + model.is_clip) * FLOAT * model.size.parameters
    return Work(seconds=5e-9 * stored, read=stored, written=stored, host=2 * stored)


def make_head(model: Model, classes: int, prompts: int, train: int) -> Work:
    """Embeds the prompts of every class, or the first training examples of each."""
    passes = classes * prompts if model.embeds_texts else min(train, max(2000, 5 * classes))
    decoded = 0 if model.embeds_texts else passes
    stored = FLOAT * model.size.parameters
    return Work(passes, batches=passes / 64, decoded=decoded, read=stored, host=2 * stored, written=3e4)


def make_init(model: Model) -> Work:
    """Draws the adapters."""
    stored = FLOAT * model.size.parameters
    return Work(read=stored, written=FLOAT * model.trained, host=stored)


def take_finetuned(model: Model) -> Work:
    """Reads somebody's model and writes what differs from θ0."""
    stored = FLOAT * model.size.parameters
    return Work(read=2 * stored, written=FLOAT * model.trained, host=3 * stored)


def finetune(model: Model, tasks: int, steps: int, batch_size: int, is_image: bool) -> Work:
    """Steps of a forward and a backward pass over a batch, every picture decoded afresh; AdamW on what trains."""
    steps, stored = steps * tasks, FLOAT * model.size.parameters
    examples = steps * batch_size
    training = 3 * FLOAT * model.trained  # gradients and two moments
    return Work(
        forwards=examples,
        backwards=examples,
        batches=2 * steps,
        decoded=examples * is_image,
        traversed=steps * OPTIMIZER * FLOAT * model.trained,
        read=stored,
        written=FLOAT * model.trained,
        host=stored,
        device=stored + training + model.activations(batch_size),
    )


def fisher(model: Model, directions: int, examples: int, is_image: bool) -> Work:
    """A forward pass an example, and as many backward passes as there are directions, so many together as fit."""
    stored, gradients = FLOAT * model.size.parameters, FLOAT * model.coordinates
    together = max(1, min(directions, GRADIENTS // gradients))
    launches, directions = examples * ceil(directions / together), examples * directions
    return Work(
        forwards=examples,
        backwards=directions,
        batches=examples + launches,
        decoded=examples * is_image,
        traversed=directions * 3 * gradients,
        read=2 * stored,
        written=gradients,
        host=stored + FLOAT * model.trained,
        device=stored + (1 + 2 * together) * gradients + together * model.activations(1),
    )


def gram(model: Model, examples: int, batch_size: int, is_image: bool) -> Work:
    """A forward pass an example; of every linear layer the products of its inputs."""
    size, stored = model.size, FLOAT * model.size.parameters
    found = FLOAT * 21 * size.layers * size.width**2  # four inputs of attention and one of fc1, d²; one of fc2, (4 d)²
    return Work(
        forwards=2 * examples,  # the products are about as much work as the pass
        batches=examples / batch_size,
        decoded=examples * is_image,
        read=2 * stored,
        written=found,
        host=stored + FLOAT * model.trained + found,
        device=2 * stored + found,
    )


def merged_grams(model: Model, tasks: int, examples: int, batch_size: int, is_image: bool) -> Work:
    """Of every task and block a pass up to that block: on average half of the network, as often as it has blocks."""
    one = gram(model, examples, batch_size, is_image)
    passes = tasks * examples * (model.size.layers / 2 + 1)
    return Work(
        forwards=passes,
        batches=passes / batch_size,
        decoded=one.decoded * tasks,
        read=(tasks + 1) * one.read / 2,
        written=one.written * tasks,
        host=FLOAT * (model.size.parameters + tasks * model.trained) + one.written * tasks,
        device=2 * FLOAT * model.size.parameters + one.written,
    )


def fuse(
    model: Model,
    validation: Sequence[int],
    *,
    batch_size: int,
    candidates: int,
    adaptive: bool,
    is_masked: bool,
    models: int,
) -> Work:
    """Scores several candidates on validation examples, and writes the best; what merging takes comes to that.

    validation: examples of each task; models: how many are written, one a task by multi-model methods.
    """
    tasks, scored = len(validation), sum(validation)
    passes = candidates * (candidates > 1) + 2 * adaptive + is_masked  # entropies before, after; models under the mask
    stored, coordinates = FLOAT * model.size.parameters, FLOAT * model.coordinates
    return Work(
        forwards=scored * passes,
        batches=scored * passes / batch_size,
        read=scored * passes * model.picture_bytes() + stored + tasks * FLOAT * model.trained,
        written=models * FLOAT * model.changed + 2 * FILE_BYTES,
        host=stored + tasks * FLOAT * max(model.trained, model.coordinates),
        device=stored + (2 * models + 1) * coordinates + sum(kept(model, n) for n in validation),
    )


def adaptation(model: Model, tasks: int, objectives: float, batch_size: int, crossings: float) -> Work:
    """Objectives of one batch over all tasks, forward and backward; task vectors stay in memory.

    crossings: how often the coordinates of one model cross memory for each objective, in bytes of a float.
    """
    examples, coordinates = objectives * tasks * batch_size, FLOAT * model.coordinates
    return Work(
        forwards=examples,
        backwards=examples,
        batches=2 * objectives,
        read=examples * model.picture_bytes(),
        traversed=objectives * crossings * coordinates,
        device=FLOAT * model.size.parameters + (tasks + 8) * coordinates + tasks * model.activations(batch_size),
    )


def evaluate(model: Model, tests: Sequence[int], batch_size: int) -> Work:
    """A forward pass of every test example of every task, one task's batches in memory at a time."""
    stored, changed, scored = FLOAT * model.size.parameters, FLOAT * model.changed, sum(tests)
    return Work(
        forwards=scored,
        batches=scored / batch_size,
        read=scored * model.picture_bytes() + stored + changed,
        written=ROW_BYTES * scored + 2 * FILE_BYTES,
        host=stored + changed,
        device=stored + changed + max(kept(model, n) for n in tests),
    )


def similarity(model: Model, tasks: int) -> Work:
    """Products of all task vectors with each other, in float64."""
    stored = FLOAT * (model.size.parameters + tasks * max(model.trained, model.coordinates))
    crossed = 6 * tasks * FLOAT * model.coordinates
    return Work(traversed=crossed, read=stored, written=FILE_BYTES, host=1.25 * stored)


def tables(rows: int, models: int, tests: int) -> Work:
    """Reads all predictions; resamples the test examples of the models that are ranked."""
    return Work(
        seconds=6.5 + 1.25e-6 * rows + 1.3e-9 * RESAMPLES * models * tests,
        read=ROW_BYTES * rows,
        written=1e6,
        host=3e8 + 2200.0 * models * tests,
    )


def report(boards: int) -> Work:
    """Draws the figures of every suite and mode."""
    return Work(seconds=1 + 3.3 * boards, written=2e6, host=3e8)


def kept(model: Model, examples: int) -> float:
    """Bytes of a task's prepared inputs that stay in memory from one candidate to the next."""
    return min(examples * model.example_bytes(), KEPT)
