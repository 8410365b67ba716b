"""Keys and values of new tokens into their places in the cache (for its layout see `kernels.kv_types`)."""

from __future__ import annotations

from functools import partial

from edgellm.kernels.kv_types import SCALE_BYTES, SCALE_GROUP, KVType
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import KV_APPEND, KV_BLOCK
from edgellm.kernels.staged import Value, Vocabulary, staged

LANES = 16  # every head consists of so many dimensions, or a multiple


def _append(
    v: Vocabulary, x: Value, head_dim: Value, head: Value, place: Value, *, kind: KVType, are_keys: bool
) -> None:
    """float32 [head_dim] at x to place `place` of the keys, or of the values, of one head of a block."""
    scales = head + head_dim * (KV_BLOCK * kind.number_bytes)

    def group(g: Value, first: Value, n_parts: int) -> None:
        numbers, scale = kind.encode(v, [v.f32(x + (first + LANES * part) * 4, LANES) for part in range(n_parts)])
        for part, register in enumerate(numbers):
            at = first + LANES * part
            if are_keys:
                for lane in range(LANES):
                    v.store(head + ((at + lane) * KV_BLOCK + place) * kind.number_bytes, register[lane])
            else:
                v.store(head + (place * head_dim + at) * kind.number_bytes, register)
        if scale is not None:
            v.store(scales + (g * KV_BLOCK + place) * SCALE_BYTES, scale)

    n_full = head_dim / SCALE_GROUP
    v.repeat(n_full, lambda g: group(g, g * SCALE_GROUP, SCALE_GROUP // LANES))
    rest = head_dim - n_full * SCALE_GROUP
    v.repeat(rest / LANES, lambda _: group(n_full, n_full * SCALE_GROUP, 1))


def build_kv_append(isa, kind: KVType):
    """Chunk c is some tokens, for all heads."""
    op_at = record_viewer(KV_APPEND)
    load_i64 = memory(isa).load_i64
    append_key, append_value = (
        staged(isa, "void", *["i64"] * 4)(partial(_append, kind=kind, are_keys=are_keys)) for are_keys in (True, False)
    )

    def kv_append(record, chunk, thread):
        op = op_at(record)
        values_at = op.n_heads * op.key_bytes
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            slot = load_i64(op.slots + token * 8)
            block = op.cache + slot // KV_BLOCK * op.block_bytes
            for head in range(op.n_heads):
                k = op.k + (token * op.k_stride + head * op.key_dim) * 4
                v = op.v + (token * op.v_stride + head * op.value_dim) * 4
                append_key(k, op.key_dim, block + head * op.key_bytes, slot % KV_BLOCK)
                append_value(v, op.value_dim, block + values_at + head * op.value_bytes, slot % KV_BLOCK)

    return kv_append
