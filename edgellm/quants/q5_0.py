from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Scales
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats


class Q5_0(BlockFormat):
    """32 weights in 22 bytes, 5.5 bits each: weight = d * (q - 16).

    d:   float16, the one scale of the block.
    qh:  the fifth, highest bit of every q: a 32-bit little-endian number whose bit j belongs to weight j.
    qs:  16 bytes of the four lower bits. The low half of byte j is weight j, the high half weight j + 16.

    The 32 levels run from -16 to 15, one more below zero, so d is negative where the extreme weight is better on -16.
    """

    ggml_type = 6
    block_size = 32
    max_u = 31
    zero = 16
    grid = Scales(1, 32, tuple(range(-16, 16)))
    layout = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
    in_tiles = (("d", 2), ("qh", 4), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d = blocks["d"][:, None].astype(np.float32)
        low = split_bits(blocks["qs"], 4).reshape(-1, 32)
        high = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")
        return d * ((low | high << 4).astype(np.float32) - 16)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        q = fitted.q
        return self.pack(
            len(x),
            d=fitted.d,
            qh=np.packbits(q >> 4, axis=-1, bitorder="little"),
            qs=join_bits((q & 15).reshape(-1, 2, 16), 4),
        )

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        q = block.packed(6, 16)
        return v.concat(q & 15, q >> 4) | block.bits(2) << 4

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return block.half(0), None
