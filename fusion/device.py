"""Where and in which precision models run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def device() -> torch.device:
    """The GPU if one is visible, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision() -> torch.dtype:
    """bfloat16 where this device computes in it natively, else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return torch.bfloat16 if native else torch.float32


def autocast() -> AbstractContextManager[object]:
    """Matrix products in `precision()`, the rest in float32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision() is torch.bfloat16)


def on_device(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors where models run."""
    return {name: tensor.to(device()) for name, tensor in tensors.items()}
