"""Floats of eight bits (FP8) with scales for a tensor, for rows, for groups or for blocks, as float32.

weight = value * scale. E4M3 has no infinity ("fn" in other places), E5M2 is the upper half of a float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.made import Rows, of_floats
from edgellm.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = ("F8_E4M3", "F8_E5M2")


def unpack_fp8(
    arrays: Arrays, module: str, scale_name: str, block: tuple[int, int] | None, as_it_is: bool, losses: Losses
) -> None:
    """Put a float weight in the place of one in FP8.

    block:  rows and columns that share a scale; None to tell it by the shapes, which must then divide.

    Raises FormatError.
    """
    name = f"{module}.weight"
    kind = arrays.type_of(name)
    raw = arrays.integers(name, *TYPES)
    scales, type_name = arrays.numbers(f"{module}.{scale_name}")
    if scales.shape[1::2] == (1, 1):  # ModelOpt's, of blocks
        scales = scales.reshape(scales.shape[::2])
    values, (n_out, n_in) = values_of(kind or ""), raw.shape
    high, wide = _block_of(scales, (n_out, n_in), block, name)
    of_row, of_column = np.arange(n_out) // high, np.arange(n_in) // wide
    scales = scales.reshape(-1, scales.shape[-1] if scales.ndim > 1 else 1)
    type_name = ("BF16" if type_name == "F32" else type_name) if as_it_is else "F32"

    def rows_of(rows: Rows) -> NDArray[np.float32]:
        return values[raw[rows]] * scales[of_row[rows]][:, of_column]

    if as_it_is:
        losses.dequantized(name, type_name, "GGUF has no type for FP8")
    arrays.add(of_floats(name, (n_out, n_in), type_name, rows_of))


def _block_of(
    scales: NDArray[np.float32], shape: tuple[int, int], block: tuple[int, int] | None, name: str
) -> tuple[int, int]:
    """How many rows and columns share a scale."""
    found = scales.shape if scales.ndim == 2 else (scales.size, 1)
    if scales.size == 1:
        return shape
    if block and found == tuple(-(-n // size) for n, size in zip(shape, block, strict=True)):
        return block
    if scales.ndim <= 2 and all(n % count == 0 for n, count in zip(shape, found, strict=True)):
        return shape[0] // found[0], shape[1] // found[1]
    raise FormatError(
        f"tensor {name!r} is of shape {shape}, and its scales of {scales.shape}, which do not belong together"
    )


def values_of(kind: str) -> NDArray[np.float32]:
    """float32 [256]: what each byte means."""
    byte = np.arange(256, dtype=np.uint16)
    if kind == "F8_E5M2":
        return (byte << 8).view(np.float16).astype(np.float32)
    exponent, fraction = (byte >> 3 & 15).astype(np.int32), (byte & 7).astype(np.float32)
    magnitude = np.where(exponent, np.ldexp(1 + fraction / 8, exponent - 7), np.ldexp(fraction / 8, -6))
    magnitude[byte & 127 == 127] = np.nan
    return np.where(byte >> 7, -magnitude, magnitude).astype(np.float32)
