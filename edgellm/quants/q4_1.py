from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Lines
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats


class Q4_1(BlockFormat):
    """32 weights in 20 bytes, 5 bits each: weight = d * q + m.

    d:   float16, the distance of two levels.
    m:   float16, the smallest weight, where q is 0.
    qs:  16 bytes of 4-bit q from 0 to 15. The low half of byte j is weight j, the high half weight j + 16.
    """

    ggml_type = 3
    block_size = 32
    max_u = 15
    grid = Lines(1, 32, q_max=15, stretch=(3, 1))
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
    in_tiles = (("d", 2), ("m", 2), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d = blocks["d"][:, None].astype(np.float32)
        m = blocks["m"][:, None].astype(np.float32)
        q = split_bits(blocks["qs"], 4).reshape(-1, 32)
        return d * q.astype(np.float32) + m

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        return self.pack(len(x), d=fitted.d, m=-fitted.m, qs=join_bits(fitted.q.reshape(-1, 2, 16), 4))

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        q = block.packed(4, 16)
        return v.concat(q & 15, q >> 4)

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return block.halves(0)
