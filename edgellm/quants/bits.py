"""Small fields in bytes, as all ggml formats arrange them.

A run of n bytes holds 8 // bits planes of n values. Plane 0 is the lowest bits of every byte in order,
plane 1 the bits above them, and so on: with 4 bits, byte 0 holds value 0 below and value n above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgellm.quants.base import Bytes


def split_bits(packed: Bytes, bits: int) -> Bytes:
    """uint8[..., n] -> uint8[..., 8 // bits, n]: the planes, each value below 2**bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8((1 << bits) - 1)


def join_bits(planes: Bytes, bits: int) -> Bytes:
    """uint8[..., 8 // bits, n] -> uint8[..., n]: the inverse of `split_bits`."""
    joined: Bytes = planes[..., 0, :].copy()
    for plane in range(1, planes.shape[-2]):
        joined = joined | (planes[..., plane, :] << np.uint8(bits * plane))
    return joined
