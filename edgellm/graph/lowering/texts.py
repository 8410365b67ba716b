"""Rules of what encoders have beside decoders: texts that see all of themselves, and pairs of them."""

from __future__ import annotations

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.graph.lowering.base import SEGMENTS, TEXT_TASKS, Lowering, rule
from edgellm.graph.nodes import AddSegment, Attention, AttentionSpec
from edgellm.graph.ops import Chunks
from edgellm.kernels import encoder_records

NO_LIMIT = 1 << 40  # further than any position


@rule(AddSegment)
def lower_add_segment(low: Lowering, node: AddSegment) -> None:
    x, out = low.make_from(node.x, node)
    table = low.floats(node.table)
    fields = {"x": x, "table": table, "segments": SEGMENTS, "out": out, "n_cols": x.width}
    low.add_rows("add_segment", encoder_records.ADD_SEGMENT, x, [x], [out], **fields)


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
