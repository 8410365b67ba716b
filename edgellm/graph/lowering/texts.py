"""Rules of what encoders have beside decoders: texts that see all of themselves, positions, layer norms."""

from __future__ import annotations

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.graph.lowering.base import TEXT_TASKS, Lowering, rule
from edgellm.graph.nodes import AddEmbedding, Attention, AttentionSpec, LayerNorm
from edgellm.graph.ops import Chunks
from edgellm.kernels import encoder_records

NO_LIMIT = 1 << 40  # further than any position


@rule(LayerNorm)
def lower_layer_norm(low: Lowering, node: LayerNorm) -> None:
    x, out = low.make_from(node.x, node)
    low.add_rows(
        "layer_norm",
        encoder_records.LAYER_NORM,
        x,
        [x],
        [out],
        x=x,
        weight=low.floats(node.weight),
        bias=0 if node.bias is None else low.floats(node.bias),
        out=out,
        n_cols=x.width,
        epsilon=node.epsilon,
    )


@rule(AddEmbedding)
def lower_add_embedding(low: Lowering, node: AddEmbedding) -> None:
    x, out = low.make_from(node.x, node)
    table = low.floats(node.table)
    low.add_rows(
        "add_embedding",
        encoder_records.ADD_EMBEDDING,
        x,
        [x],
        [out],
        options={"of": node.of},
        x=x,
        table=table,
        out=out,
        n_cols=x.width,
    )


def attend_to_texts(low: Lowering, node: Attention) -> None:
    """Attention to keys and values of the batch itself: each text to its own."""
    spec, source = node.spec, node.source
    _refuse_what_is_not_built(spec)
    # Keys and values are read after their own node, so nobody may work in their place before.
    q, k, v, out = low.read(node.q), low.rows(source.keys), low.rows(source.values), low.make(node)
    ahead = 0 if spec.causal else NO_LIMIT if spec.window is None else spec.window - 1
    low.add(
        "text_attention",
        encoder_records.TEXT_ATTENTION,
        Chunks(TEXT_TASKS.name, 1, node.n_heads),
        [q, k, v],
        [out],
        options={"alibi": spec.alibi is not None},
        scratch=encoder_records.text_attention_scratch_bytes(low.longest, source.key_dim),
        q=q,
        q_stride=q.stride,
        k=k,
        k_stride=k.stride,
        v=v,
        v_stride=v.stride,
        out=out,
        out_stride=out.stride,
        n_heads=node.n_heads,
        group=node.n_heads // source.n_heads,
        key_dim=source.key_dim,
        value_dim=source.value_dim,
        scale=spec.scale,
        window=spec.window or NO_LIMIT,
        ahead=ahead,
        slopes=0 if spec.alibi is None else np.ascontiguousarray(spec.alibi, np.float32),
        tasks=TEXT_TASKS,
    )


def _refuse_what_is_not_built(spec: AttentionSpec) -> None:
    """Raises UnsupportedError naming it."""
    if spec.soft_cap is not None:
        raise UnsupportedError(f"attention of whole texts with soft-capped scores ({spec.soft_cap}) is not built yet")
    if spec.sinks is not None:
        raise UnsupportedError("attention of whole texts with sinks is not built yet")
