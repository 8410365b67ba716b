from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.quants.base import BlockFormat
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.grids import Fitted, Lines
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from edgellm.quants.base import Blocks, Bytes, Fit, Floats


class Q4_K(BlockFormat):
    """256 weights in 144 bytes, 4.5 bits each, in 8 groups of 32: weight = (d * scale) * q - (dmin * min).

    d:       float16, the scale of the eight 6-bit group scales.
    dmin:    float16, the scale of the eight 6-bit group minima.
    scales:  12 bytes, the 6-bit scales and minima of the groups (see `unpack_scales`).
    qs:      128 bytes of 4-bit q from 0 to 15, 32 bytes for two groups: the low halves are one group,
             the high halves the next.
    """

    ggml_type = 12
    block_size = 256
    n_alike = 2
    max_u = 15
    grid = Lines(8, 32, q_max=15, scale_max=63, stretch=(3, 1))
    layout = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
    in_tiles = (("d", 2), ("dmin", 2), ("scales", 1), ("qs", 4))

    def decode(self, blocks: Blocks) -> Floats:
        d, m = group_scales(blocks)
        q = split_bits(blocks["qs"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
        return (d * q.astype(np.float32) - m).reshape(-1, 256)

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        fitted = fit(self, x, importance)
        qs = join_bits(fitted.q.reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
        return self.pack(len(x), **group_fields(fitted), qs=qs)

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        q = block.packed(16 + 32 * (group // 2), 32)
        return q >> 4 if group % 2 else q & 15

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        return unpack_group_scales(v, block)


def group_scales(blocks: Blocks) -> tuple[Floats, Floats]:
    """Q4_K or Q5_K blocks[n] -> d * scale and dmin * min of their groups, each float32[n, 8, 1]."""
    scale, minimum = unpack_scales(blocks["scales"])
    d = blocks["d"][:, None].astype(np.float32) * scale.astype(np.float32)
    m = blocks["dmin"][:, None].astype(np.float32) * minimum.astype(np.float32)
    return d[..., None], m[..., None]


def unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """uint8[n, 12] -> scale and min of the eight groups, each uint8[n, 8] below 64.

    Bytes 0-3 hold the scales of groups 0-3 in their six lower bits, bytes 4-7 the minima of groups 0-3.
    Groups 4-7 came later into the same space: bytes 8-11 hold four lower bits of their scales (below) and
    minima (above), and the two upper bits sit on top of bytes 0-3 (scales) and 4-7 (minima).
    """
    scale, minimum, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    return (
        np.concatenate([scale & 63, (low & 15) | (scale >> 6 << 4)], axis=-1),
        np.concatenate([minimum & 63, (low >> 4) | (minimum >> 6 << 4)], axis=-1),
    )


def pack_scales(scale: Bytes, minimum: Bytes) -> Bytes:
    """The inverse of `unpack_scales`: two uint8[n, 8] below 64 -> uint8[n, 12]."""
    return np.concatenate(
        [
            scale[:, :4] | (scale[:, 4:] >> 4 << 6),
            minimum[:, :4] | (minimum[:, 4:] >> 4 << 6),
            (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4,
        ],
        axis=-1,
    )


def group_fields(fitted: Fitted) -> dict[str, Floats | Bytes]:
    """The fields d, dmin and scales of Q4_K and Q5_K."""
    scale, minimum = fitted.scale.astype(np.uint8), fitted.minimum.astype(np.uint8)
    return {"d": fitted.d, "dmin": fitted.m, "scales": pack_scales(scale, minimum)}


def unpack_group_scales(v: Any, block: Any) -> tuple[Any, Any]:
    """What `group_scales` gives, for kernels: the scales and the biases of the 8 groups."""
    d, dmin = block.halves(0)
    scale, minimum, low = (block.bytes(at, 4) for at in (4, 8, 12))
    scales = v.concat(scale & 63, (low & 15) | (scale >> 6) << 4)
    minima = v.concat(minimum & 63, (low >> 4) | (minimum >> 6) << 4)
    return scales.to_f32() * d, -(minima.to_f32() * dmin)
