from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Scales
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Bytes, Fit, Floats


class Q3_K(BlockFormat):
    """256 weights in 110 bytes, 3.4375 bits each, in 16 groups of 16: weight = (d * (scale - 32)) * (q - 4).

    hmask:   32 bytes, the third, highest bit of q: bit i of byte j belongs to weight 32 * i + j.
    qs:      64 bytes, the two lower bits of q. 32 bytes hold 128 weights, in four planes of 32 (two groups).
    scales:  12 bytes, the 6-bit scales of the groups: the four lower bits in two planes of eight, then the
             two upper bits in four planes of four.
    d:       float16, the scale of the scales.
    """

    ggml_type = 11
    block_size = 256
    scale_group = 16
    max_u = 7
    zero = 4
    grid = Scales(16, 16, tuple(range(-4, 4)), scale_range=(-32, 31))
    layout = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
    in_tiles = (("scales", 1), ("d", 2), ("hmask", 4), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        scale = unpack_scales(blocks["scales"]).astype(np.float32) - 32
        d = blocks["d"][:, None].astype(np.float32) * scale
        low = split_bits(blocks["qs"].reshape(-1, 2, 32), 2).reshape(-1, 256)
        high = split_bits(blocks["hmask"], 1).reshape(-1, 256)
        q = (low | high << 2).astype(np.float32) - 4
        return (d[..., None] * q.reshape(-1, 16, 16)).reshape(-1, 256)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        q = fitted.q
        return self.pack(
            len(x),
            hmask=join_bits((q >> 2).reshape(-1, 8, 32), 1),
            qs=join_bits((q & 3).reshape(-1, 2, 4, 32), 2).reshape(-1, 64),
            scales=pack_scales((fitted.scale + 32).astype(np.uint8)),
            d=fitted.d,
        )

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        half, plane = divmod(group, 4)
        low = (block.packed(32 + 32 * half, 32) >> 2 * plane) & 3
        return low | ((block.packed(0, 32) >> group) & 1) << 2

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        packed, top = block.bytes(96, 8), block.bytes(104, 4)
        scales = v.concat(packed & 15, packed >> 4) | v.concat(*((top >> 2 * i) & 3 for i in range(4))) << 4
        return (scales - 32).to_f32() * block.half(108), None


def unpack_scales(packed: Bytes) -> Bytes:
    """uint8[n, 12] -> uint8[n, 16] below 64, the scales as stored (32 more than they mean)."""
    low = split_bits(packed[:, :8], 4).reshape(-1, 16)
    high = split_bits(packed[:, 8:], 2).reshape(-1, 16)
    return low | high << 4


def pack_scales(scale: Bytes) -> Bytes:
    """The inverse of `unpack_scales`: uint8[n, 16] below 64 -> uint8[n, 12]."""
    low = join_bits((scale & 15).reshape(-1, 2, 8), 4)
    high = join_bits((scale >> 4).reshape(-1, 4, 4), 2)
    return np.concatenate([low, high], axis=-1)
