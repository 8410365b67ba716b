from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Scales
from edgellm.quants.iq4_nl import LEVELS
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats

HIGH_SHIFTS = np.arange(0, 16, 2, dtype=np.uint16)


class IQ4_XS(BlockFormat):
    """256 weights in 136 bytes, 4.25 bits each, in 8 groups of 32: weight = (d * (scale - 32)) * LEVELS[q].

    d:         float16, the scale of the scales.
    scales_h:  a 16-bit number, the two upper bits of each group's 6-bit scale, group 0 lowest.
    scales_l:  4 bytes, the four lower bits of the scales: groups 2i and 2i + 1 in byte i.
    qs:        128 bytes of 4-bit q into the levels of IQ4_NL, 16 bytes per group: the low half of byte j is
               weight j, the high half weight j + 16.
    """

    ggml_type = 23
    block_size = 256
    n_alike = 2
    max_u = 240
    zero = 127
    grid = Scales(8, 32, tuple(LEVELS.tolist()), scale_range=(-32, 31), stretch=25)
    layout = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])
    in_tiles = (("d", 2), ("scales_h", 2), ("scales_l", 4), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        low = split_bits(blocks["scales_l"][..., None], 4).reshape(-1, 8)
        high = (blocks["scales_h"][:, None] >> HIGH_SHIFTS) & 3
        scale = (low | high << 4).astype(np.float32) - 32
        d = blocks["d"][:, None].astype(np.float32) * scale
        q = split_bits(blocks["qs"].reshape(-1, 8, 16), 4).reshape(-1, 8, 32)
        return (d[..., None] * LEVELS[q].astype(np.float32)).reshape(-1, 256)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        stored = (fitted.scale + 32).astype(np.uint16)
        return self.pack(
            len(x),
            d=fitted.d,
            scales_h=np.bitwise_or.reduce(stored >> 4 << HIGH_SHIFTS, axis=-1),
            scales_l=join_bits((stored & 15).astype(np.uint8).reshape(-1, 4, 2, 1), 4)[..., 0],
            qs=join_bits(fitted.q.reshape(-1, 8, 2, 16), 4).reshape(-1, 128),
        )

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        q = block.packed(8 + 16 * group, 16)
        return v.lookup(LEVELS + 127, v.concat(q & 15, q >> 4))

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        high, low = block.word(0) >> 16, block.word(4)
        scales = v.concat(*((low >> 4 * i) & 15 | ((high >> 2 * i) & 3) << 4 for i in range(8)))
        return (scales - 32).to_f32() * block.half(0), None
