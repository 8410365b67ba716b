from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.fit import inverse, round_to, to_half
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats


class Q8_0(BlockFormat):
    """32 weights in 34 bytes, 8.5 bits each: weight = d * q.

    d:   float16, the one scale of the block: the largest magnitude divided by 127.
    qs:  32 signed bytes, q of each weight in order.
    """

    ggml_type = 8
    block_size = 32
    max_u = 255
    zero = 128
    layout = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
    in_tiles = (("d", 2), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d = blocks["d"][:, None].astype(np.float32)
        return d * blocks["qs"].astype(np.float32)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        d = to_half(np.abs(x).max(-1, keepdims=True) / 127)
        return self.pack(len(x), d=d[:, 0], qs=round_to(x * inverse(d), -127, 127))

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        return block.packed(2, 32) ^ 128

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return block.half(0), None
