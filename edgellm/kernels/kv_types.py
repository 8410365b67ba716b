"""How the KV cache stores its numbers: as float16, as int8 with scales, or exactly.

The cache of a layer is an array of blocks of KV_BLOCK tokens. A block holds the keys of every key-value head as
[key_dim, KV_BLOCK], and behind the keys of all heads the values as [KV_BLOCK, value_dim]. Where a type has
scales, those of a head stand behind its keys, or its values, as float16 [groups of dimensions, KV_BLOCK]: each for
SCALE_GROUP dimensions of one token (fewer at the end of a head), so that a new token changes nothing of others.
"""

from __future__ import annotations

from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary

SCALE_GROUP = 32
SCALE_BYTES = 2


class KVType:
    """A type of cache: its sizes, and the staged code that reads and writes its numbers.

    number_bytes:  of one number.
    has_scales:    whether it is multiplied by the scale of its group.
    """

    name: str
    number_bytes: int
    has_scales: bool

    def head_bytes(self, head_dim: int) -> int:
        """The keys, or the values, of one head in a block."""
        scales = -(-head_dim // SCALE_GROUP) * SCALE_BYTES if self.has_scales else 0
        return KV_BLOCK * (head_dim * self.number_bytes + scales)

    def block_bytes(self, n_kv_heads: int, key_dim: int, value_dim: int) -> int:
        """Keys and values of a whole block."""
        return n_kv_heads * (self.head_bytes(key_dim) + self.head_bytes(value_dim))

    def load(self, v: Vocabulary, address: Value, lanes: int) -> Value:
        """Neighbouring numbers as float32, before they are scaled."""
        raise NotImplementedError

    def encode(self, v: Vocabulary, parts: list[Value]) -> tuple[list[Value], Value | None]:
        """Registers of float32, together one group, as they are stored; and their scale, as it is stored."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.name


class _F32(KVType):
    """Numbers as they are, for comparisons and for models whose values float16 cannot hold."""

    name = "f32"
    number_bytes = 4
    has_scales = False

    def load(self, v: Vocabulary, address: Value, lanes: int) -> Value:
        return v.f32(address, lanes)

    def encode(self, v: Vocabulary, parts: list[Value]) -> tuple[list[Value], Value | None]:
        return parts, None


class _F16(KVType):
    """Numbers rounded to float16; what is beyond 65504 becomes infinity."""

    name = "f16"
    number_bytes = 2
    has_scales = False

    def load(self, v: Vocabulary, address: Value, lanes: int) -> Value:
        return v.half(address, lanes)

    def encode(self, v: Vocabulary, parts: list[Value]) -> tuple[list[Value], Value | None]:
        return [v.f32_to_f16(part) for part in parts], None


class _Q8_0(KVType):
    """number = scale * q, for q from -127 to 127 and a scale that is the largest magnitude of the group / 127.

    Infinity and NaN make a scale that is not finite either, and so spoil the group.
    """

    name = "q8_0"
    number_bytes = 1
    has_scales = True

    def load(self, v: Vocabulary, address: Value, lanes: int) -> Value:
        return v.u8(address, lanes).to_f32()

    def encode(self, v: Vocabulary, parts: list[Value]) -> tuple[list[Value], Value | None]:
        # As integers, magnitudes have the same order, and NaN comes after infinity: it spoils the scale.
        largest = v.abs(parts[0]).bitcast(I32)
        for part in parts[1:]:
            largest = v.maximum(largest, v.abs(part).bitcast(I32))
        scale = v.f32_to_f16(largest.max().bitcast(F32) / 127)
        divisor, zero = v.f16_to_f32(scale), v.constant(0.0, F32)
        inverse = v.select(v.greater(divisor, zero), v.constant(1.0, F32) / divisor, zero)
        # A scale near 0 has few bits left, and may be too small for the largest number.
        limited = [v.minimum(v.maximum(part * inverse, -127.0), 127.0) for part in parts]
        return [v.round_to_i32(part).trunc(I8) for part in limited], scale


F16_CACHE, Q8_0_CACHE, F32_CACHE = _F16(), _Q8_0(), _F32()
KV_TYPES: dict[str, KVType] = {kind.name: kind for kind in (F16_CACHE, Q8_0_CACHE, F32_CACHE)}
