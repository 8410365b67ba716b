from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Scales
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Fit, Floats


class Q6_K(BlockFormat):
    """256 weights in 210 bytes, 6.5625 bits each, in 16 groups of 16: weight = (d * scale) * (q - 32).

    ql:      128 bytes, the four lower bits of q. 64 bytes hold 128 weights, low halves first.
    qh:      64 bytes, the two upper bits of q. 32 bytes hold 128 weights, in four planes of 32.
    scales:  16 signed bytes, the scale of each group.
    d:       float16, the scale of the scales.
    """

    ggml_type = 14
    block_size = 256
    n_alike = 4
    scale_group = 16
    max_u = 63
    zero = 32
    grid = Scales(16, 16, tuple(range(-32, 32)), scale_range=(-128, 127), stretch=1.5)
    layout = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
    in_tiles = (("scales", 1), ("d", 2), ("qh", 4), ("ql", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d = blocks["d"][:, None].astype(np.float32) * blocks["scales"].astype(np.float32)
        low = split_bits(blocks["ql"].reshape(-1, 2, 64), 4).reshape(-1, 256)
        high = split_bits(blocks["qh"].reshape(-1, 2, 32), 2).reshape(-1, 256)
        q = (low | high << 4).astype(np.float32) - 32
        return (d[..., None] * q.reshape(-1, 16, 16)).reshape(-1, 256)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        q = fitted.q
        return self.pack(
            len(x),
            ql=join_bits((q & 15).reshape(-1, 2, 2, 64), 4).reshape(-1, 128),
            qh=join_bits((q >> 4).reshape(-1, 2, 4, 32), 2).reshape(-1, 64),
            scales=fitted.scale,
            d=fitted.d,
        )

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        half, plane = divmod(group, 4)
        low = block.packed(64 * half + 32 * (plane % 2), 32)
        high = (block.packed(128 + 32 * half, 32) >> 2 * plane) & 3
        return (low >> 4 if plane >= 2 else low & 15) | high << 4

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return block.signed_bytes(192, 16).to_f32() * block.half(208), None
