from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.fit import nearest_index
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Bytes, Fit, Floats

# E2M1, a float of 4 bits: 1 sign, 2 exponent, 1 fraction. The levels are doubled, so that all are integers.
MAGNITUDES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.int8)
LEVELS = np.concatenate([MAGNITUDES, -MAGNITUDES])


class MXFP4(BlockFormat):
    """32 weights in 17 bytes, 4.25 bits each: weight = 2**(e - 128) * LEVELS[q], as the OCP MX standard v1.0.

    e:   one byte, the exponent that the block shares. 2**(e - 127) is the scale of E2M1 values, halved here
         because LEVELS are doubled. (The standard's NaN, 255, is read as 2**127, as ggml does.)
    qs:  16 bytes of 4-bit floats. The low half of byte j is weight j, the high half weight j + 16.
    """

    ggml_type = 39
    block_size = 32
    max_u = 24
    zero = 12
    layout = np.dtype([("e", "u1"), ("qs", "u1", 16)])
    in_tiles = (("e", 1), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        q = split_bits(blocks["qs"], 4).reshape(-1, 32)
        return scale_of(blocks["e"])[:, None] * LEVELS[q].astype(np.float32)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        # The exponent of the largest weight, or one more: nothing is cut off then, but levels are coarser.
        _, exponent = np.frexp(np.abs(x).max(-1))
        candidates = np.clip(exponent - 3 + 127 + np.arange(2)[:, None], 0, 254).astype(np.uint8)
        q = np.stack([encode_levels(x / scale_of(e)[:, None]) for e in candidates])
        squares = np.square(scale_of(candidates)[..., None] * LEVELS[q].astype(np.float32) - x)
        error = (squares if importance is None else squares * importance).sum(-1)
        coarser = error[1] < error[0]
        return self.pack(
            len(x),
            e=np.where(coarser, candidates[1], candidates[0]),
            qs=join_bits(np.where(coarser[:, None], q[1], q[0]).reshape(-1, 2, 16), 4),
        )

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        q = block.packed(1, 16)
        return v.lookup(LEVELS + 12, v.concat(q & 15, q >> 4))

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return v.power_of_two(block.byte(0)), None


def scale_of(e: Bytes) -> Floats:
    """2**(e - 128) as float32."""
    return np.ldexp(np.float32(1), e.astype(np.int32) - 128)


def encode_levels(x: Floats) -> Bytes:
    """The index into LEVELS of the value nearest to each x."""
    return nearest_index(np.abs(x), MAGNITUDES) | (x < 0).astype(np.uint8) << 3
