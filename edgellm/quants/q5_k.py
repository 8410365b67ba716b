from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Lines
from edgellm.quants.protocols import Block, Register, Vocabulary
from edgellm.quants.q4_k import group_fields, group_scales, unpack_group_scales

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats


class Q5_K(BlockFormat):
    """256 weights in 176 bytes, 5.5 bits each, in 8 groups of 32: weight = (d * scale) * q - (dmin * min).

    d:       float16, the scale of the eight 6-bit group scales.
    dmin:    float16, the scale of the eight 6-bit group minima.
    scales:  12 bytes, the 6-bit scales and minima, as in Q4_K.
    qh:      32 bytes, the fifth, highest bit of q: bit i of byte j belongs to weight j of group i.
    qs:      128 bytes, the four lower bits of q, 32 bytes for two groups: the low halves are one group,
             the high halves the next.
    """

    ggml_type = 13
    block_size = 256
    n_alike = 2
    max_u = 31
    grid = Lines(8, 32, q_max=31, scale_max=63, stretch=(6, 1))
    layout = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
    in_tiles = (("d", 2), ("dmin", 2), ("scales", 1), ("qh", 4), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d, m = group_scales(blocks)
        low = split_bits(blocks["qs"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
        high = split_bits(blocks["qh"], 1)
        return (d * (low | high << 4).astype(np.float32) - m).reshape(-1, 256)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        q = fitted.q.reshape(-1, 8, 32)
        return self.pack(
            len(x),
            **group_fields(fitted),
            qh=join_bits(q >> 4, 1),
            qs=join_bits((q & 15).reshape(-1, 4, 2, 32), 4).reshape(-1, 128),
        )

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        high = (block.packed(16, 32) >> group) & 1
        low = block.packed(48 + 32 * (group // 2), 32)
        return (low >> 4 if group % 2 else low & 15) | high << 4

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return unpack_group_scales(v, block)
