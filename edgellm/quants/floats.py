"""Weights that stand alone: a "block" is a single floating-point number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FormatError
from edgellm.quants.base import BlockFormat
from edgellm.quants.protocols import Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats

FIRST_TO_OVERFLOW = np.float32(65520)  # halfway to what would be the next float16


class FloatFormat(BlockFormat):
    """A format of single numbers: kernels `load` n neighbours as float32 registers and unpack no blocks."""

    layout = np.dtype([("value", "<f4")])

    def load(self, v: Vocabulary, address: Any, n: int) -> Register:
        raise NotImplementedError


class F32(FloatFormat):
    """IEEE single precision, 32 bits: 1 sign, 8 exponent, 23 fraction. Norms and biases are stored so."""

    ggml_type = 0
    block_size = 1
    layout = np.dtype([("value", "<f4")])

    def decode(self, blocks: Blocks) -> Floats:
        return blocks["value"][:, None]

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        return x.reshape(-1).astype("<f4").view(self.layout)

    def load(self, v: Vocabulary, address: Any, n: int) -> Register:
        return v.f32(address, n)


class F16(FloatFormat):
    """IEEE half precision, 16 bits: 1 sign, 5 exponent, 10 fraction; the largest number is 65504.

    A larger finite weight is a FormatError, not a silent infinity.
    """

    ggml_type = 1
    block_size = 1
    layout = np.dtype([("value", "<f2")])

    def decode(self, blocks: Blocks) -> Floats:
        return blocks["value"][:, None].astype(np.float32)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        too_large = (np.abs(x) >= FIRST_TO_OVERFLOW) & np.isfinite(x)
        if too_large.any():
            raise FormatError(f"a weight of {np.abs(x[too_large]).max():g} does not fit into F16, which ends at 65504")
        halves = x.reshape(-1).astype("<f2")
        return halves.view(self.layout)

    def load(self, v: Vocabulary, address: Any, n: int) -> Register:
        return v.half(address, n)


class BF16(FloatFormat):
    """The upper half of a float32, 16 bits: 1 sign, 8 exponent, 7 fraction. Float32's range, but coarser."""

    ggml_type = 30
    block_size = 1
    layout = np.dtype([("bits", "<u2")])

    def decode(self, blocks: Blocks) -> Floats:
        return (blocks["bits"][:, None].astype(np.uint32) << 16).view(np.float32)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        bits = x.reshape(-1).view(np.uint32)
        to_nearest_even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet_nan = (bits >> 16) | 0x40  # rounding could turn a NaN into infinity
        upper = np.where(np.isnan(x.reshape(-1)), quiet_nan, to_nearest_even)
        return upper.astype("<u2").view(self.layout)

    def load(self, v: Vocabulary, address: Any, n: int) -> Register:
        return v.brain_half(address, n)
