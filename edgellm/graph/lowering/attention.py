"""The rules of attention: keys and values into the cache, and queries against all that is there."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.graph.lowering.base import (
    Lowering,
    full_table,
    merges_table,
    rule,
    slots_table,
    tasks_table,
    tokens_per_chunk,
)
from edgellm.graph.lowering.constant_keys import constant_keys
from edgellm.graph.lowering.rows import add_bias_to
from edgellm.graph.lowering.texts import attend_to_texts
from edgellm.graph.nodes import Attention, KeysValues
from edgellm.graph.ops import ByRows, Chunks, Fixed, Rows
from edgellm.kernels import recent_records, records
from edgellm.kernels.kv_types import RECENT, CacheType

ATTENTION_ROWS = 72  # query rows (tokens times heads of a group) that share the keys and values they load
MAX_SPLITS = 256  # pieces in one batch
NO_WINDOW = 1 << 40  # further back than any position


@rule(KeysValues)
def lower_keys_values(low: Lowering, node: KeysValues) -> None:
    if not node.cached:
        return  # attention reads them where they are
    key_dim, value_dim, n_heads = *low.head_dims(node), node.n_heads
    k, v = (
        _resized(low, _keys(low, node), n_heads, key_dim),
        _resized(low, low.read(node.values), n_heads, value_dim),
    )
    fields, per_chunk, kept = _cache_fields(low, node), tokens_per_chunk(k.width), low.kept.index(low.kept_of(node))

    def append(kind: CacheType, slots: int, fields: dict[str, Any]) -> None:
        low.add(
            "kv_append",
            records.KV_APPEND,
            Chunks("tokens", per_chunk),
            [k, v],
            [fields["cache"]],
            format=kind,
            split=ByRows("tokens"),
            k=k,
            k_stride=k.stride,
            v=v,
            v_stride=v.stride,
            n_heads=n_heads,
            slots=slots_table(slots),
            chunk_tokens=per_chunk,
            scratch=4 * max(key_dim, value_dim),
            **fields,
        )

    append(low.target.kv_type, kept, fields)
    if recent := low.target.kv_type.recent:
        append(recent, low.kept.index(RECENT), _cache_fields(low, node, recent))


def _quantize_keys(low: Lowering, node: KeysValues, recent: CacheType) -> None:
    """Of blocks that are full now: before somebody looks at them, once for all."""
    layer = node.copy_of or node
    if layer in low.quantizing:
        return
    low.quantizing.add(layer)
    to, of = _cache_fields(low, node), _cache_fields(low, node, recent)
    tasks = full_table(low.kept.index(low.kept_of(node)))
    low.add(
        "quantize_keys",
        recent_records.QUANTIZE_KEYS,
        Chunks(tasks.name, 1, node.n_heads),
        [of["cache"]],
        [to["cache"]],
        n_heads=node.n_heads,
        key_dim=to["key_dim"],
        cache=to["cache"],
        block_bytes=to["block_bytes"],
        key_bytes=to["key_bytes"],
        recent=of["cache"],
        recent_block_bytes=of["block_bytes"],
        recent_key_bytes=of["key_bytes"],
        tasks=tasks,
    )


def _keys(low: Lowering, node: KeysValues) -> Rows:
    """The keys as they are stored: without what all of them have in common."""
    common = constant_keys(node, low.attentions_to(node), low.target.kv_type.keys)
    if common is None:
        return low.read(node.keys)
    x, out = low.change(node.keys, node.keys.name)
    add_bias_to(low, x, out, -common)
    return out


def _cache_fields(low: Lowering, node: KeysValues, recent: CacheType | None = None) -> dict[str, Any]:
    """The words of a record that say where keys and values are, and how wide; of blocks that are not full: `recent`."""
    kind = recent or low.target.kv_type
    key_dim, value_dim = low.head_dims(node)
    cache, step = low.recent_of(node) if recent else low.cache_of(node)
    return {
        "key_dim": key_dim,
        "value_dim": value_dim,
        "cache": cache,
        "block_bytes": step,
        "key_bytes": kind.keys.head_bytes(key_dim),
        "value_bytes": kind.values.head_bytes(value_dim),
    }


@rule(Attention)
def lower_attention(low: Lowering, node: Attention) -> None:
    if not node.source.cached:
        attend_to_texts(low, node)
        return
    if not node.spec.causal:
        raise UnsupportedError("attention that is not causal is not built yet")
    source = node.source
    key_dim, value_dim = low.head_dims(source)
    q = _resized(low, low.read(node.q), node.n_heads, key_dim)
    out = low.make(node)
    if value_dim == source.value_dim:
        _attend(low, node, q, out)
    else:
        wide = Rows(node.n_heads * value_dim, "attention")
        _attend(low, node, q, wide)
        _resize(low, wide, out, node.n_heads)


def _attend(low: Lowering, node: Attention, q: Rows, out: Rows) -> None:
    spec, n_heads, n_kv_heads = node.spec, node.n_heads, node.source.n_heads
    group = n_heads // n_kv_heads
    index = low.windows.index(spec.window)
    cache = _cache_fields(low, node.source)
    recent: dict[str, Any] = dict.fromkeys(("cache", "block_bytes", "key_bytes", "value_bytes"), 0)
    if kind := low.target.kv_type.recent:
        recent = _cache_fields(low, node.source, kind)
        _quantize_keys(low, node.source, kind)
    key_dim, value_dim = cache["key_dim"], cache["value_dim"]
    sinks = 0 if spec.sinks is None else low.floats(spec.sinks)
    partial_bytes = MAX_SPLITS * n_heads * (value_dim + 2) * 4
    if low.partial is None or low.partial.n_bytes < partial_bytes:
        low.partial = Fixed(partial_bytes, "attention splits")
    low.add(
        "attention",
        records.ATTENTION,
        Chunks(tasks_table(index).name, 1, n_kv_heads),
        [q, cache["cache"], *([recent["cache"]] if kind else [])],
        [out, low.partial],
        format=low.target.kv_type,
        scratch=records.attention_scratch_bytes(max(ATTENTION_ROWS, group), key_dim, value_dim),
        q=q,
        q_stride=q.stride,
        out=out,
        out_stride=out.stride,
        n_kv_heads=n_kv_heads,
        group=group,
        scale=spec.scale,
        window=spec.window or NO_WINDOW,
        soft_cap=spec.soft_cap or 0.0,
        slopes=0 if spec.alibi is None else np.ascontiguousarray(spec.alibi, np.float32),
        sinks=sinks,
        tasks=tasks_table(index),
        chunk_heads=1,
        n_threads=low.target.tuning.n_threads,
        partial=low.partial,
        recent=recent["cache"],
        recent_block_bytes=recent["block_bytes"],
        recent_key_bytes=recent["key_bytes"],
        recent_value_bytes=recent["value_bytes"],
        **cache,
    )
    low.add(
        "attention_merge",
        records.ATTENTION_MERGE,
        Chunks(merges_table(index).name),
        [low.partial],
        [out],
        scratch=4 * n_heads * (value_dim + 2),
        tasks=merges_table(index),
        partial=low.partial,
        out=out,
        out_stride=out.stride,
        n_heads=n_heads,
        value_dim=value_dim,
        sinks=sinks,
    )


def _resized(low: Lowering, x: Rows, n_heads: int, head_dim: int) -> Rows:
    """Heads filled up to another size with zeros, which change no score and give zeros."""
    if x.width == n_heads * head_dim:
        return x
    out = Rows(n_heads * head_dim, x.name)
    _resize(low, x, out, n_heads)
    return out


def _resize(low: Lowering, x: Rows, out: Rows, n_heads: int) -> None:
    """Heads filled up with zeros, or cut off."""
    low.add_rows(
        "resize_heads",
        records.RESIZE_HEADS,
        x,
        [x],
        [out],
        x=x,
        head_dim=x.width // n_heads,
        out=out,
        out_stride=out.stride,
        out_head_dim=out.width // n_heads,
        n_heads=n_heads,
    )
