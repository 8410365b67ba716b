from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Lines
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats


class Q5_1(BlockFormat):
    """32 weights in 24 bytes, 6 bits each: weight = d * q + m.

    d:   float16, the distance of two levels.
    m:   float16, the smallest weight, where q is 0.
    qh:  the fifth, highest bit of every q: a 32-bit little-endian number whose bit j belongs to weight j.
    qs:  16 bytes of the four lower bits. The low half of byte j is weight j, the high half weight j + 16.
    """

    ggml_type = 7
    block_size = 32
    max_u = 31
    grid = Lines(1, 32, q_max=31, stretch=(6, 1))
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
    in_tiles = (("d", 2), ("m", 2), ("qh", 4), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d = blocks["d"][:, None].astype(np.float32)
        m = blocks["m"][:, None].astype(np.float32)
        low = split_bits(blocks["qs"], 4).reshape(-1, 32)
        high = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")
        return d * (low | high << 4).astype(np.float32) + m

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        q = fitted.q
        return self.pack(
            len(x),
            d=fitted.d,
            m=-fitted.m,
            qh=np.packbits(q >> 4, axis=-1, bitorder="little"),
            qs=join_bits((q & 15).reshape(-1, 2, 16), 4),
        )

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        q = block.packed(8, 16)
        return v.concat(q & 15, q >> 4) | block.bits(4) << 4

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return block.halves(0)
