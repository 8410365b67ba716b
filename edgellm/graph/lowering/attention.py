"""The rules of attention: keys and values into the cache, and queries against all that is there."""

from __future__ import annotations

from edgellm.errors import UnsupportedError
from edgellm.graph.lowering.base import (
    Lowering,
    merges_table,
    padded_head_dim,
    rule,
    tasks_table,
)
from edgellm.graph.lowering.texts import attend_to_texts
from edgellm.graph.nodes import Attention, AttentionSpec, KeysValues
from edgellm.graph.ops import Chunks, Fixed, Rows
from edgellm.kernels import records

ATTENTION_ROWS = 72  # query rows (tokens times heads of a group) that share the keys and values they load
MAX_SPLITS = 256  # pieces in one batch
NO_WINDOW = 1 << 40  # further back than any position


@rule(KeysValues)
def lower_keys_values(low: Lowering, node: KeysValues) -> None:
    if not node.cached:
        return  # attention reads them where they are
    if node.key_dim != node.value_dim:
        raise UnsupportedError(
            f"attention with keys of {node.key_dim} and values of {node.value_dim} dimensions is not built yet"
        )
    head_dim, n_heads = padded_head_dim(node.key_dim), node.n_heads
    k, v = (_resized(low, low.read(x), n_heads, head_dim) for x in (node.keys, node.values))
    kind, cache = low.target.kv_type, low.cache_of(node)
    low.add_rows(
        "kv_append",
        records.KV_APPEND,
        k,
        [k, v],
        [cache],
        format=kind,
        k=k,
        v=v,
        n_heads=n_heads,
        head_dim=head_dim,
        cache=cache,
        block_bytes=kind.block_bytes(n_heads, head_dim),
    )


@rule(Attention)
def lower_attention(low: Lowering, node: Attention) -> None:
    if not node.source.cached:
        attend_to_texts(low, node)
        return
    refuse_what_is_not_built(node.spec)
    own_dim = node.q.width // node.n_heads
    head_dim = padded_head_dim(own_dim)
    q = _resized(low, low.read(node.q), node.n_heads, head_dim)
    out = low.make(node)
    if head_dim == own_dim:
        _attend(low, node, q, out)
    else:
        wide = Rows(node.n_heads * head_dim, "attention")
        _attend(low, node, q, wide)
        _resize(low, wide, out, node.n_heads)


def _attend(low: Lowering, node: Attention, q: Rows, out: Rows) -> None:
    kind, window = low.target.kv_type, node.spec.window
    n_heads, n_kv_heads = node.n_heads, node.source.n_heads
    head_dim, group = q.width // n_heads, n_heads // n_kv_heads
    index = low.windows.index(window)
    cache = low.cache_of(node.source)
    partial_bytes = MAX_SPLITS * n_heads * (head_dim + 2) * 4
    if low.partial is None or low.partial.n_bytes < partial_bytes:
        low.partial = Fixed(partial_bytes, "attention splits")
    low.add(
        "attention",
        records.ATTENTION,
        Chunks(tasks_table(index).name, 1, n_kv_heads),
        [q, cache],
        [out, low.partial],
        format=kind,
        scratch=records.attention_scratch_bytes(max(ATTENTION_ROWS, group), head_dim),
        q=q,
        q_stride=q.stride,
        out=out,
        out_stride=out.stride,
        n_kv_heads=n_kv_heads,
        group=group,
        head_dim=head_dim,
        scale=node.spec.scale,
        window=window or NO_WINDOW,
        cache=cache,
        block_bytes=kind.block_bytes(n_kv_heads, head_dim),
        tasks=tasks_table(index),
        n_threads=low.target.tuning.n_threads,
        partial=low.partial,
    )
    low.add(
        "attention_merge",
        records.ATTENTION_MERGE,
        Chunks(merges_table(index).name),
        [low.partial],
        [out],
        scratch=4 * n_heads * (head_dim + 2),
        tasks=merges_table(index),
        partial=low.partial,
        out=out,
        out_stride=out.stride,
        n_heads=n_heads,
        head_dim=head_dim,
    )


def refuse_what_is_not_built(spec: AttentionSpec) -> None:
    """Raises UnsupportedError naming it."""
    missing = {
        "that is not causal": not spec.causal,
        f"with soft-capped scores ({spec.soft_cap})": spec.soft_cap is not None,
        "with sinks": spec.sinks is not None,
        "with linear biases (ALiBi)": spec.alibi is not None,
    }
    for what, is_asked in missing.items():
        if is_asked:
            raise UnsupportedError(f"attention {what} is not built yet")


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
