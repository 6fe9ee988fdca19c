"""Where and in which precision models run."""

import math
import os
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Generator, Tensor

CPU = torch.device("cpu")


def device() -> torch.device:
    """The device that FUSION_DEVICE names, cpu or cuda; without it the GPU if one is visible, else the CPU.

    ValueError where it names a GPU and PyTorch sees none.
    """
    named = os.environ.get("FUSION_DEVICE")
    return present(named) if named else torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen(wanted: str) -> torch.device:
    """The device of that name, cpu or cuda; `device()` where it is auto. ValueError where PyTorch sees no GPU."""
    return device() if wanted == "auto" else present(wanted)


def present(name: str) -> torch.device:
    """The device of that name; ValueError where it is a GPU and PyTorch sees none, or no device's name."""
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"FUSION_DEVICE: got {name!r}, expected cpu, cuda or cuda:0, cuda:1 …") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise ValueError(
            f"got the device {name}, and PyTorch {torch.__version__}, which {built}, sees no GPU "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}); check nvidia-smi, or use cpu"
        )
    return place


def name_of(place: torch.device) -> str:
    """What a device is called: 'cpu', or the name of the GPU."""
    return torch.cuda.get_device_name(place) if place.type == "cuda" else place.type


def require_gpu(count: int) -> None:
    """RuntimeError where fewer GPUs are visible than the job was given, unless FUSION_DEVICE=cpu."""
    if os.environ.get("FUSION_DEVICE") == "cpu" or torch.cuda.device_count() >= count:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    raise RuntimeError(
        f"this job asked for {count} GPU and PyTorch sees {torch.cuda.device_count()} on {socket.gethostname()} "
        f"(CUDA_VISIBLE_DEVICES={visible!r}, PyTorch {torch.__version__}); expected the GPU that the scheduler gave "
        "it: check `nvidia-smi` there and the CUDA build of PyTorch, or set `gpus: 0` in profiles/slurm, or "
        "FUSION_DEVICE=cpu to compute on the CPU all the same"
    )


def precision() -> torch.dtype:
    """bfloat16 where this device computes in it natively, else float32."""
    if device().type != "cpu":
        return torch.bfloat16 if device().type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return torch.bfloat16 if native else torch.float32


def autocast() -> AbstractContextManager[object]:
    """Matrix products in `precision()`, the rest in float32."""
    return torch.autocast(device().type, torch.bfloat16) if precision() is torch.bfloat16 else nullcontext()


def on_device(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors where models run."""
    return {name: tensor.to(device()) for name, tensor in tensors.items()}


IS_PLAIN = False  # whether the plain formulations, those of other devices, run on the CPU too: a test's affair


def compiles(place: torch.device) -> bool:
    """Whether formulations made for the CPU run there: compiled loops, numpy. The plain ones run anywhere."""
    return place.type == "cpu" and not IS_PLAIN


def generator(place: torch.device, seed: int) -> Generator:
    """Random numbers that are drawn there: the same for the same seed on the same kind of device."""
    return Generator(place if place.type == "cuda" else CPU).manual_seed(seed)


def free_bytes(place: torch.device) -> float:
    """The memory of a GPU that nobody has taken; no bound is known of the CPU's, which holds the models anyway."""
    return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else math.inf


def onto(place: torch.device, tensor: Tensor) -> Tensor:
    """The same tensor there; a GPU takes it between what it computes, and nobody waits."""
    return tensor.pin_memory().to(place, non_blocking=True) if place.type == "cuda" else tensor.to(place)


def out_of_memory(error: Exception, advice: str) -> MemoryError:
    """What torch says of an operation that a GPU has no memory for (what was wanted and free), and what to do."""
    said = ". ".join(str(error).split(". ")[:3]).rstrip(".")
    return MemoryError(f"{said}; {advice}")
