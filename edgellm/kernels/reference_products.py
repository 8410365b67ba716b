"""What the kernels compute that go backwards through linear layers, in NumPy (see `reference.py`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.reference import Floats, fused_multiply_add
from edgellm.quants import BlockFormat


def linear_transposed(weights: NDArray[np.uint8], fmt: BlockFormat, x: Floats) -> Floats:
    """x W for weights uint8 [n_rows, row_bytes] and x float32 [n_tokens, n_rows] -> float32 [n_tokens, n_cols].

    Row after row of W, each by one fused multiply-add, as the kernel does it: both give the same bits.
    """
    w = fmt.dequantize(weights)
    total: Floats = np.zeros((len(x), w.shape[1]), np.float32)
    for row in range(len(w)):
        total = fused_multiply_add(x[:, row, None], w[row], total)
    return total


def outer_sum(a: Floats, b: Floats, g: Floats, scale: float = 1.0) -> Floats:
    """g + scale times the outer products of rows: float32 [n_tokens, n_rows] and [n_tokens, n_cols] -> as g.

    Token after token, each by one fused multiply-add to what g [n_rows, n_cols] had: the bits of the kernel.
    """
    total = g
    for left, right in zip(a, b, strict=True):
        total = fused_multiply_add(left[:, None] * np.float32(scale), right, total)
    return total


def nearest_bf16(x: Floats) -> Floats:
    """To the nearest bfloat16, ties to even, as float32 again; for numbers that are some."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + ((bits >> 16) & 1) + 0x7FFF) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def linear_bf16(weights: NDArray[np.uint8], fmt: BlockFormat, x: Floats) -> Floats:
    """W x for weights uint8 [n_rows, row_bytes], rounded to bfloat16, by rows of such numbers: [n_tokens, n_rows].

    Added up in float64: AMX rounds each sum to float32, in an order of its own.
    """
    w = nearest_bf16(fmt.dequantize(weights)).astype(np.float64)
    return (x.astype(np.float64) @ w.T).astype(np.float32)


def linear_bf16_transposed(weights: NDArray[np.uint8], fmt: BlockFormat, x: Floats) -> Floats:
    """x W of the same."""
    w = nearest_bf16(fmt.dequantize(weights)).astype(np.float64)
    return (x.astype(np.float64) @ w).astype(np.float32)
