"""Tensors of torch, which writes the files of trained checkpoints, and how to compare with them."""

from __future__ import annotations

import mmap

import numpy as np
import torch

WEIGHTS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHERS = {
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def mapped(array: np.ndarray) -> bool:
    """Whether an array views a mapped file."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(getattr(array.base, "obj", array.base), mmap.mmap)
