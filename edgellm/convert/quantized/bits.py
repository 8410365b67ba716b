"""Integers of a few bits, as quantized checkpoints pack them into words of 32: a dense run, the lowest bits first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unpack(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """32-bit words [n, n_words] -> uint8 [n, count]: value i begins at bit i * bits; it may reach across two words."""
    raw = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return raw[:, :count]
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((raw[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(raw), -1)[:, :count]
    flat = np.unpackbits(raw, axis=1, count=count * bits, bitorder="little").reshape(len(raw), count, bits)
    return np.packbits(flat, axis=2, bitorder="little")[:, :, 0]
