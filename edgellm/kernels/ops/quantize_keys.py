"""The keys of a block that is full now, from float16 to four bits, channel by channel (`kv_types.ChannelKeys`)."""

from __future__ import annotations

from edgellm.kernels.kv_types import F16_KV, LANES, Q4_0_KEYS, SCALE_BYTES, UNIT_BYTES
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.attention_channels import UNIT_DIMS
from edgellm.kernels.recent_records import FULL_BLOCK_TASK, QUANTIZE_KEYS
from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.staged import F32, I16, Value, Vocabulary, staged

MOST = 15.0
PARTS = range(0, KV_BLOCK, LANES)


def _quantize_head(v: Vocabulary, keys: Value, key_dim: Value, to: Value) -> None:
    """float16 [key_dim, KV_BLOCK] at keys."""
    channels = to + key_dim * Q4_0_KEYS.channels_at(1)

    def unit(i: Value) -> None:
        q = [_quantize_channel(v, keys, channels, i * UNIT_DIMS + dim, key_dim) for dim in range(UNIT_DIMS)]
        for part, token in enumerate(PARTS):
            a, b, c, d = (channel[part] for channel in q)
            word = a | (b << 8) | (c << 4) | (d << 12)
            v.store(to + (i * KV_BLOCK + token) * UNIT_BYTES, word.trunc(I16))

    v.repeat(key_dim / UNIT_DIMS, unit)


def _quantize_channel(v: Vocabulary, keys: Value, channels: Value, channel: Value, key_dim: Value) -> list[Value]:
    """A channel as int32 registers; its scale, its minimum and its number in the first key go to their places."""
    at = keys + channel * (KV_BLOCK * F16_KV.number_bytes)
    numbers = [v.half(at + token * F16_KV.number_bytes, LANES) for token in PARTS]
    # The first is kept elsewhere: the second takes its place.
    others = [v.shuffle(numbers[0], numbers[0], [1, *range(1, LANES)]), *numbers[1:]]
    least, most, spoilt = others[0], others[0], others[0] - others[0]
    for part in others[1:]:
        least, most, spoilt = v.minimum(least, part), v.maximum(most, part), spoilt + (part - part)
    minimum = v.f32_to_f16(v.folded(least, v.minimum))
    # What is not finite makes a scale that is not.
    reach = v.folded(most, v.maximum) - v.f16_to_f32(minimum) + v.folded(spoilt, lambda a, b: a + b)
    scale = v.f32_to_f16(reach / MOST)
    for index, number in enumerate((scale, minimum, v.f16(at))):
        v.store(channels + (key_dim * index + channel) * SCALE_BYTES, number)
    step, zero = v.f16_to_f32(scale), v.constant(0.0, F32)
    inverse = v.select(v.greater(step, zero), v.constant(1.0, F32) / step, zero)
    start = v.f16_to_f32(minimum)
    return [v.round_to_i32(v.minimum(v.maximum((part - start) * inverse, 0.0), MOST)) for part in others]


def build_quantize_keys(isa):
    """A chunk is a head of a task."""
    op_at, task_at = record_viewer(QUANTIZE_KEYS), record_viewer(FULL_BLOCK_TASK)
    task_bytes = FULL_BLOCK_TASK.dtype.itemsize
    quantize_head = staged(isa, "void", *["i64"] * 3)(_quantize_head)

    def quantize_keys(record, chunk, thread):
        op = op_at(record)
        task, head = task_at(op.tasks + chunk // op.n_heads * task_bytes), chunk % op.n_heads
        keys = op.recent + task.recent * op.recent_block_bytes + head * op.recent_key_bytes
        quantize_head(keys, op.key_dim, op.cache + task.block * op.block_bytes + head * op.key_bytes)

    return quantize_keys
