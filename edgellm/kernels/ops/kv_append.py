"""Keys and values of new tokens into their places in the cache (for its layout see `kernels.kv_types`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from numba import njit

from edgellm.kernels.kv_types import (
    LANES,
    SCALE_BYTES,
    SCALE_GROUP,
    UNIT_BYTES,
    CacheType,
    ChannelKeys,
    FloatKV,
    IntegerKV,
    KVType,
)
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.rotate import turned_head
from edgellm.kernels.records import KV_APPEND, KV_BLOCK
from edgellm.kernels.staged import Value, Vocabulary, staged


def _append_floats(
    v: Vocabulary, x: Value, head_dim: Value, head: Value, place: Value, *, kind: FloatKV, are_keys: bool
) -> None:
    """float32 [head_dim] at x to place `place` of the keys, or of the values, of one head of a block."""

    def some(i: Value) -> None:
        at = i * LANES
        register = kind.stored(v, v.f32(x + at * 4, LANES))
        if not are_keys:
            v.store(head + (place * head_dim + at) * kind.number_bytes, register)
            return
        for lane in range(LANES):
            v.store(head + ((at + lane) * KV_BLOCK + place) * kind.number_bytes, register[lane])

    v.repeat(head_dim / LANES, some)


def _append_integers(
    v: Vocabulary, x: Value, head_dim: Value, head: Value, place: Value, *, kind: IntegerKV, are_keys: bool
) -> None:
    """The same as integers, group by group, with their scales."""
    scales = head + head_dim * (KV_BLOCK * kind.number_bits) / 8

    def group(g: Value, n_parts: int) -> None:
        first = g * SCALE_GROUP
        q, scale = kind.encode(v, [v.f32(x + (first + LANES * part) * 4, LANES) for part in range(n_parts)])
        if are_keys:
            units = kind.key_units(v, q)
            for i in range(units.n):
                v.store(head + ((first / 2 + i) * KV_BLOCK + place) * UNIT_BYTES, units[i])
        else:
            numbers = kind.value_bytes(v, q)
            pair = place / 2
            start = head + (pair * head_dim + first) / kind.n_parts * UNIT_BYTES + (place - pair * 2)
            for i in range(numbers.n):
                v.store(start + i * UNIT_BYTES, numbers[i])
        v.store(scales + (g * KV_BLOCK + place) * SCALE_BYTES, scale)

    n_full = head_dim / SCALE_GROUP
    v.repeat(n_full, lambda g: group(g, SCALE_GROUP // LANES))
    if kind.head_align < SCALE_GROUP:
        v.repeat((head_dim - n_full * SCALE_GROUP) / LANES, lambda _: group(n_full, 1))


def _append(isa, kind: KVType, *, are_keys: bool):
    """append(x, head_dim, head, place) of keys, or of values; what full blocks are stored as, `quantize_keys` makes."""
    if isinstance(kind, ChannelKeys):

        @njit(error_model="numpy")
        def append_later(x, head_dim, head, place):
            pass

        return append_later
    function: Callable[..., None] = _append_integers if isinstance(kind, IntegerKV) else _append_floats
    return staged(isa, "void", *["i64"] * 4)(partial(function, kind=kind, are_keys=are_keys))


def build_kv_append(isa, kind: CacheType):
    """Chunk c is some tokens, for all heads."""
    op_at = record_viewer(KV_APPEND)
    load_i64 = memory(isa).load_i64
    append_key, append_value = _append(isa, kind.keys, are_keys=True), _append(isa, kind.values, are_keys=False)
    turned_key, turned_value = turned_head(isa, kind.keys), turned_head(isa, kind.values)

    def kv_append(record, chunk, thread):
        op = op_at(record)
        values_at = op.n_heads * op.key_bytes
        spare = op.scratch + thread * op.scratch_bytes
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            slot = load_i64(op.slots + token * 8)
            block = op.cache + slot // KV_BLOCK * op.block_bytes
            for head in range(op.n_heads):
                k = op.k + (token * op.k_stride + head * op.key_dim) * 4
                v = op.v + (token * op.v_stride + head * op.value_dim) * 4
                k = turned_key(k, op.key_dim, spare)
                append_key(k, op.key_dim, block + head * op.key_bytes, slot % KV_BLOCK)
                v = turned_value(v, op.value_dim, spare)
                append_value(v, op.value_dim, block + values_at + head * op.value_bytes, slot % KV_BLOCK)

    return kv_append
