from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Lines
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats


class Q2_K(BlockFormat):
    """256 weights in 84 bytes, 2.625 bits each, in 16 groups of 16: weight = (d * scale) * q - (dmin * min).

    scales:  16 bytes, one per group: the 4-bit scale below, the 4-bit minimum above.
    qs:      64 bytes of 2-bit q from 0 to 3. 32 bytes hold 128 weights, in four planes of 32 (two groups).
    d:       float16, the scale of the group scales.
    dmin:    float16, the scale of the group minima.
    """

    ggml_type = 10
    block_size = 256
    max_u = 3
    scale_group = 16
    grid = Lines(16, 16, q_max=3, scale_max=15, stretch=(1, 0.5), n_targets=15)
    layout = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
    in_tiles = (("scales", 1), ("d", 2), ("dmin", 2), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d = blocks["d"][:, None].astype(np.float32) * (blocks["scales"] & 15).astype(np.float32)
        m = blocks["dmin"][:, None].astype(np.float32) * (blocks["scales"] >> 4).astype(np.float32)
        q = split_bits(blocks["qs"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
        return (d[..., None] * q.astype(np.float32) - m[..., None]).reshape(-1, 256)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        return self.pack(
            len(x),
            scales=fitted.scale.astype(np.uint8) | fitted.minimum.astype(np.uint8) << 4,
            qs=join_bits(fitted.q.reshape(-1, 2, 4, 32), 2).reshape(-1, 64),
            d=fitted.d,
            dmin=fitted.m,
        )

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        half, plane = divmod(group, 4)
        return (block.packed(16 + 32 * half, 32) >> 2 * plane) & 3

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        packed = block.bytes(0, 16)
        d, dmin = block.halves(80)
        return (packed & 15).to_f32() * d, -((packed >> 4).to_f32() * dmin)
