from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Scales
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats

# The 16 levels lie closer together near zero, where most weights are.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


class IQ4_NL(BlockFormat):
    """32 weights in 18 bytes, 4.5 bits each, on uneven ("non-linear") levels: weight = d * LEVELS[q].

    d:   float16, the one scale of the block.
    qs:  16 bytes of 4-bit q from 0 to 15. The low half of byte j is weight j, the high half weight j + 16.
    """

    ggml_type = 20
    block_size = 32
    max_u = 240
    zero = 127
    grid = Scales(1, 32, tuple(LEVELS.tolist()), stretch=25)
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    in_tiles = (("d", 2), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d = blocks["d"][:, None].astype(np.float32)
        q = split_bits(blocks["qs"], 4).reshape(-1, 32)
        return d * LEVELS[q].astype(np.float32)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        return self.pack(len(x), d=fitted.d, qs=join_bits(fitted.q.reshape(-1, 2, 16), 4))

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        q = block.packed(2, 16)
        return v.lookup(LEVELS + 127, v.concat(q & 15, q >> 4))

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return block.half(0), None
