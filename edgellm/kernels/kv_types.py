"""How the KV cache stores its numbers: as float16, exactly, or as small integers with scales.

Keys have one type and values another, or both the same: a `CacheType` is the two. The cache of a layer is an array of
blocks of KV_BLOCK tokens. A block holds the keys of every key-value head, and behind the keys of all heads the values.
Floats stand as [key_dim, KV_BLOCK] and [KV_BLOCK, value_dim].

Integers are multiplied in pairs, so they stand in pairs: two neighbouring dimensions of a key, and a dimension of two
neighbouring tokens' values. Two bytes, a *unit*, hold `n_parts` such pairs:

    keys    [key_dim / 2, KV_BLOCK]                    a unit: dimensions 2w and 2w + 1 of one token; of q4_0 4w to
                                                       4w + 3, the last two in the upper half of each byte
    values  [KV_BLOCK / 2, value_dim / n_parts]        a unit: a dimension of tokens 2u and 2u + 1; of q4_0 also the
                                                       one SCALE_GROUP / 2 behind it, in the upper half of each byte

Behind the numbers of a head stand their scales, as float16 [groups of dimensions, KV_BLOCK]: each for SCALE_GROUP
dimensions of one token (fewer at the end of a head), so that a new token changes nothing of others. Keys of q4_0 have
theirs by channel, see `ChannelKeys`: they are stored when a block is full, and until then as float16 elsewhere.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.staged import F32, I8, I16, I32, Value, Vocabulary
from edgellm.quants.iq4_nl import LEVELS

SCALE_GROUP = 32
SCALE_BYTES = 2
UNIT_BYTES = 2
REACHES = (1.0, 0.95, 1.05, 0.85)  # of q4_0's first level, over the largest magnitude; tried in turn
BOUNDS = tuple((int(a) + int(b)) / 2 for a, b in pairwise(LEVELS))  # half way from each level to the next
INTEGER_VERSION = 2  # to be raised when keys or values are stored otherwise: files of older ones are of no use then
LANES = 16  # every head consists of so many dimensions, or a multiple


class KVType:
    """How keys are stored, or values.

    number_bits:  of one number.
    head_align:   a head is padded to a multiple of so many dimensions.
    is_rotated:   whether heads are turned before they are stored (`ops/rotate.py`), which evens out their numbers: a
                  group with one large number has long steps for all.
    """

    name: str
    number_bits: int
    head_align = LANES
    is_rotated = False

    def head_bytes(self, head_dim: int) -> int:
        """The keys, or the values, of one head in a block."""
        return KV_BLOCK * head_dim * self.number_bits // 8

    def padded(self, head_dim: int) -> int:
        """How wide kernels have a head."""
        return -(-head_dim // self.head_align) * self.head_align

    def __repr__(self) -> str:
        """As files of keys and values are bound to it."""
        return self.name


class FloatKV(KVType):
    """Numbers of `number_bytes` each."""

    @property
    def number_bytes(self) -> int:
        return self.number_bits // 8

    def load(self, v: Vocabulary, address: Value, lanes: int) -> Value:
        """Neighbouring numbers as float32."""
        raise NotImplementedError

    def stored(self, v: Vocabulary, x: Value) -> Value:
        """A register of float32 as it is stored."""
        raise NotImplementedError


class IntegerKV(KVType):
    """number = scale * q, for a group of dimensions of a head that was rotated. Infinity and NaN make a scale that is
    not finite.

    n_parts:  pairs of integers in a unit of two bytes.
    """

    n_parts: int
    is_rotated = True

    def __repr__(self) -> str:
        return f"{self.name}, version {INTEGER_VERSION}"

    def head_bytes(self, head_dim: int) -> int:
        return super().head_bytes(head_dim) + KV_BLOCK * self.n_groups(head_dim) * SCALE_BYTES

    def n_groups(self, head_dim: int) -> int:
        return -(-head_dim // SCALE_GROUP)

    def pairs(self, v: Vocabulary, address: Value, lanes: int) -> list[Value]:
        """Of so many neighbouring units, every part: int16 [2 * lanes]."""
        raise NotImplementedError

    def encode(self, v: Vocabulary, parts: list[Value]) -> tuple[list[Value], Value]:
        """Registers of float32, together one group, as int32 q; and their scale, float16."""
        raise NotImplementedError

    def key_units(self, v: Vocabulary, q: list[Value]) -> Value:
        """A group of a key as its units, int16."""
        raise NotImplementedError

    def value_bytes(self, v: Vocabulary, q: list[Value]) -> Value:
        """A group of a value as bytes, one for each of its units."""
        raise NotImplementedError


def _magnitude(v: Vocabulary, parts: list[Value]) -> Value:
    """The largest magnitude. As integers, magnitudes have the same order, and NaN comes after infinity: it stays."""
    largest = v.abs(parts[0]).bitcast(I32)
    for part in parts[1:]:
        largest = v.maximum(largest, v.abs(part).bitcast(I32))
    return largest.max().bitcast(F32)


def _inverse(v: Vocabulary, scale: Value) -> Value:
    """1 / scale, and 0 of what is 0 or not a number."""
    zero = v.constant(0.0, F32)
    is_some = v.greater(v.abs(scale), zero)
    return v.select(is_some, v.constant(1.0, F32) / scale, zero)


def _rounded(v: Vocabulary, part: Value, inverse: Value, least: int, most: int) -> Value:
    """A scale near 0 has few bits left, and may be too small for the largest number: hence the limits."""
    return v.round_to_i32(v.minimum(v.maximum(part * inverse, float(least)), float(most)))


class _F32(FloatKV):
    """Numbers as they are, for comparisons and for models whose values float16 cannot hold."""

    name = "f32"
    number_bits = 32

    def load(self, v: Vocabulary, address: Value, lanes: int) -> Value:
        return v.f32(address, lanes)

    def stored(self, v: Vocabulary, x: Value) -> Value:
        return x


class _F16(FloatKV):
    """Numbers rounded to float16; what is beyond 65504 becomes infinity."""

    name = "f16"
    number_bits = 16

    def load(self, v: Vocabulary, address: Value, lanes: int) -> Value:
        return v.half(address, lanes)

    def stored(self, v: Vocabulary, x: Value) -> Value:
        return v.f32_to_f16(x)


class _Q8_0(IntegerKV):
    """q from -127 to 127, and a scale that is the largest magnitude of the group / 127."""

    name = "q8_0"
    number_bits = 8
    n_parts = 1

    def pairs(self, v: Vocabulary, address: Value, lanes: int) -> list[Value]:
        return [v.u8(address, UNIT_BYTES * lanes).sext(I16)]

    def encode(self, v: Vocabulary, parts: list[Value]) -> tuple[list[Value], Value]:
        scale = v.f32_to_f16(_magnitude(v, parts) / 127)
        inverse = _inverse(v, v.f16_to_f32(scale))
        return [_rounded(v, part, inverse, -127, 127) for part in parts], scale

    def key_units(self, v: Vocabulary, q: list[Value]) -> Value:
        return self.value_bytes(v, q).bitcast(I16)

    def value_bytes(self, v: Vocabulary, q: list[Value]) -> Value:
        return v.concat(*(part.trunc(I8) for part in q))


class _Q4_0(IntegerKV):
    """q is one of the sixteen LEVELS of IQ4_NL, and four bits say which: they lie closer where most numbers are.

    The number of the largest magnitude would be the first level, or somewhat more or less: of REACHES the one is taken
    after which least is lost. For given q the best scale is the sum of q x over that of q**2, and it gains the square
    of the first over the second.
    """

    name = "q4_0"
    number_bits = 4
    head_align = SCALE_GROUP
    n_parts = 2

    def pairs(self, v: Vocabulary, address: Value, lanes: int) -> list[Value]:
        two = v.u8(address, UNIT_BYTES * lanes)
        return [v.lookup(LEVELS.tolist(), nibbles).sext(I16) for nibbles in (two & 15, two >> 4)]

    def encode(self, v: Vocabulary, parts: list[Value]) -> tuple[list[Value], Value]:
        largest = _magnitude(v, parts)
        positive, negative = _largest(v, parts), _largest(v, [-part for part in parts])
        first = v.select(v.greater(positive, negative), -largest, largest)
        zero = v.constant(0.0, F32)
        # Where all are 0 the scale is 0, or what spoils the group.
        best, scale, gain = [v.constant(0.0, F32, part.n) for part in parts], largest - largest, zero
        for reach in REACHES:
            inverse = _inverse(v, first * (reach / -float(LEVELS[0])))
            q = [_nearest(v, part * inverse) for part in parts]
            products = _folded(v, [part * x for part, x in zip(q, parts, strict=True)])
            squares = _folded(v, [part * part for part in q])
            found = products / squares
            own_gain = products * found
            # What is not a number is no greater than anything, so that is asked of the other.
            is_better = v.greater(gain, own_gain) ^ 1
            best = [v.select(is_better, new, old) for new, old in zip(q, best, strict=True)]
            scale, gain = v.select(is_better, found, scale), v.select(is_better, own_gain, gain)
        return [_index(v, part) for part in best], v.f32_to_f16(scale)

    def value_bytes(self, v: Vocabulary, q: list[Value]) -> Value:
        low, high = q
        return (low | (high << 4)).trunc(I8)


def _nearest(v: Vocabulary, x: Value) -> Value:
    """The level that is nearest to each number, as a float; of what is not a number the first."""
    level = v.constant(float(LEVELS[0]), F32, x.n)
    for bound, above in zip(BOUNDS, LEVELS[1:], strict=True):
        level = v.select(v.greater(x, v.like(bound, x)), v.constant(float(above), F32, x.n), level)
    return level


def _index(v: Vocabulary, level: Value) -> Value:
    """Which of LEVELS each is, int32."""
    index = v.constant(0, I32, level.n)
    for i, bound in enumerate(BOUNDS, 1):
        index = v.select(v.greater(level, v.like(bound, level)), v.constant(i, I32, level.n), index)
    return index


def _largest(v: Vocabulary, parts: list[Value]) -> Value:
    largest = parts[0]
    for part in parts[1:]:
        largest = v.maximum(largest, part)
    return largest.max()


def _folded(v: Vocabulary, parts: list[Value]) -> Value:
    """The sum of registers, in an order of its own: by halves."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    while total.n > 1:
        low, high = v.halves(total)
        total = low + high
    return total


class _TurnedF16(_F16):
    """Values as float16, turned as those of integers are."""

    name = "f16_turned"
    is_rotated = True


class ChannelKeys(KVType):
    """Keys of a full block: number = minimum + scale * q, q from 0 to 15, for every channel of the block.

    A channel (a dimension of a head) has much the same number in all keys, and some channels much larger ones than
    others: so a range for each of them has short steps. It can be told when all keys of a block are there; until then
    they are float16, and so they are for the tokens of their own block (after KIVI, Liu et al., 2024, which calls
    those the residual). The first key of a block is kept as float16: that of a text is often like no other.
    """

    name = "q4_0"
    number_bits = 4
    head_align = SCALE_GROUP

    def __repr__(self) -> str:
        return f"{self.name} by channel, version 1"

    def channels_at(self, head_dim: int) -> int:
        """Where the scales of channels are, float16 [head_dim]; behind them the minima, and the first key."""
        return super().head_bytes(head_dim)

    def head_bytes(self, head_dim: int) -> int:
        return super().head_bytes(head_dim) + 3 * SCALE_BYTES * head_dim


F16_KV, Q8_0_KV, Q4_0_KV, F32_KV = _F16(), _Q8_0(), _Q4_0(), _F32()
TURNED_F16_KV, Q4_0_KEYS = _TurnedF16(), ChannelKeys()
KV_TYPES: dict[str, KVType] = {kind.name: kind for kind in (F16_KV, Q8_0_KV, Q4_0_KV, F32_KV)}


class CacheType(NamedTuple):
    """A type of cache: how it stores keys, and how values."""

    keys: KVType
    values: KVType

    @property
    def recent(self) -> CacheType | None:
        """How a block is stored until it is full, beside this; None: as any other."""
        if not isinstance(self.keys, ChannelKeys):
            return None
        return CacheType(F16_KV, TURNED_F16_KV if self.values.is_rotated else self.values)

    @property
    def name(self) -> str:
        """`q8_0`, or `q8_0:q4_0` where they differ."""
        return ":".join(dict.fromkeys(kind.name for kind in self))

    def block_bytes(self, n_kv_heads: int, key_dim: int, value_dim: int) -> int:
        """Keys and values of a whole block."""
        return n_kv_heads * (self.keys.head_bytes(key_dim) + self.values.head_bytes(value_dim))

    def __repr__(self) -> str:
        """As files of keys and values are bound to it."""
        return ":".join(dict.fromkeys(map(repr, self)))


RECENT = 1  # the window of a layer of the cache that keeps nothing but the blocks that are not full
F16_CACHE, F32_CACHE = CacheType(F16_KV, F16_KV), CacheType(F32_KV, F32_KV)
CACHE_TYPES: dict[str, CacheType] = {
    found.name: found
    for keys in (KV_TYPES | {Q4_0_KEYS.name: Q4_0_KEYS}).values()
    for values in KV_TYPES.values()
    for found in [CacheType(keys, values)]
}
# What may be stored in full blocks, or in those that are not.
STORED_TYPES = tuple(dict.fromkeys([*CACHE_TYPES.values(), *(t.recent for t in CACHE_TYPES.values() if t.recent)]))
