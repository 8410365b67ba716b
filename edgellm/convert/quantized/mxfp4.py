"""Floats of four bits in the OCP's microscaling form (MXFP4), as gpt-oss has its experts.

    NAME_blocks   uint8 [..., n_out, n_in / 32, 16]: two numbers (E2M1) a byte, the first in its low half
    NAME_scales   uint8 [..., n_out, n_in / 32]: the exponent that 32 numbers share, plus 127

GGUF's type has the same numbers and exponents; in a block it has number i beside number i + 16. So nothing is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.made import MadeTensor, Rows
from edgellm.errors import FormatError
from edgellm.formats.settings import Settings
from edgellm.quants import FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = 16


def unpack_mxfp4(arrays: Arrays, settings: Settings, as_it_is: bool, losses: Losses) -> None:
    """Put a tensor [..., n_out, n_in] in the place of each pair of blocks and scales. Raises FormatError."""
    for name in [*arrays.plain, *arrays.floats]:
        if name.endswith(BLOCKS) and arrays.has(name):
            _unpack(arrays, name.removesuffix(BLOCKS))


def _unpack(arrays: Arrays, name: str) -> None:
    blocks = arrays.integers(f"{name}{BLOCKS}", "U8", n_dims=(3, 4))
    scales = arrays.integers(f"{name}{SCALES}", "U8", n_dims=blocks.ndim - 1)
    if blocks.shape[-1] != BLOCK_BYTES or blocks.shape[:-1] != scales.shape:
        raise FormatError(
            f"tensor {name + BLOCKS!r} is of shape {list(blocks.shape)}, and its scales of {list(scales.shape)}; "
            f"expected {BLOCK_BYTES} bytes for each scale"
        )
    *outer, n_blocks = scales.shape
    rows_of_blocks, rows_of_scales = blocks.reshape(-1, n_blocks, BLOCK_BYTES), scales.reshape(-1, n_blocks, 1)

    def make(rows: Rows) -> NDArray[np.uint8]:
        packed = np.concatenate([rows_of_scales[rows], _reordered(rows_of_blocks[rows])], -1)
        return packed.reshape(len(packed), -1)

    arrays.add(MadeTensor(name, (*outer, 2 * BLOCK_BYTES * n_blocks), FORMATS["MXFP4"], make))


def _reordered(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes [..., 16] with neighbours in their halves, as bytes that have number i and number i + 16 in theirs."""
    numbers = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 2, BLOCK_BYTES)
    return numbers[..., 0, :] | numbers[..., 1, :] << 4
