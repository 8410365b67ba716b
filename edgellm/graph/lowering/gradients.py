"""Rules of the steps of a backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.graph.lowering.attention import NO_WINDOW
from edgellm.graph.lowering.base import DOCUMENTS, POSITIONS, TARGET_WEIGHTS, TOKEN_IDS, Lowering, rule
from edgellm.graph.lowering.linear import add_int8
from edgellm.graph.nodes.gradients import (
    ActivateBackward,
    AttentionBackward,
    ColumnProductSum,
    ColumnSum,
    CrossEntropy,
    EmbedSum,
    GLUBackward,
    LayerNormBackward,
    LayerNormSums,
    LinearTransposed,
    OuterSum,
    ReplacedRowsSum,
    RMSNormBackward,
    RMSNormWeightSum,
    SoftCapBackward,
)
from edgellm.graph.nodes.precision import FromBF16, ToBF16
from edgellm.graph.ops import Chunks, Rows, Table
from edgellm.kernels import gradient_records
from edgellm.kernels.isa import amx
from edgellm.kernels.records import F32_TILE_COLS
from edgellm.kernels.schema import Schema

LEAST_CHUNKS = 3  # of a document's attention, where its heads allow it
SUM_COLS = 64  # columns that are added up over all tokens, a multiple of ROW_ALIGN


def memory_of(array: np.ndarray) -> tuple[str, int]:
    """Memory outside of the program, as what an op writes: steps that add to the same come one after the other."""
    return "sums", array.ctypes.data


@rule(OuterSum)
def lower_outer_sum(low: Lowering, node: OuterSum) -> None:
    a, b = low.read(node.a), low.read(node.b)
    tiles = -(-a.width // gradient_records.OUTER_ROWS) * -(-b.width // gradient_records.OUTER_COLS)
    low.add(
        "outer_sum",
        gradient_records.OUTER_SUM,
        Chunks("tokens", 1 << 30, tiles),
        [a, b],
        [memory_of(node.to)],
        scratch=gradient_records.OUTER_SCRATCH_BYTES,
        a=a,
        a_stride=a.stride,
        b=b,
        b_stride=b.stride,
        g=node.to,
        g_stride=b.width,
        n_rows=a.width,
        n_cols=b.width,
        scale=node.scale,
    )


@rule(LinearTransposed)
def lower_linear_transposed(low: Lowering, node: LinearTransposed) -> None:
    x, out = low.read(node.dy), low.make(node)
    weight = node.weight
    fields: dict[str, Any] = {"x_stride": x.stride, "out": out, "out_stride": out.stride}
    copy = low.transposed.get(weight)
    if copy is not None:
        n_rows, n_cols = copy.shape
        row_bytes = copy.format.row_bytes(n_cols)
        fields |= {"weights": copy, "row_bytes": row_bytes, "n_rows": n_rows, "n_cols": n_cols}
        fields |= {"n_threads": low.target.tuning.n_threads}
        add_int8(low, copy, low.quantized(node.dy, 1, copy.format), out, fields)
        return
    n_rows, n_cols = weight.shape
    fields |= {"weights": weight, "row_bytes": weight.format.row_bytes(n_cols), "n_rows": n_rows, "n_cols": n_cols}
    schema, block_size = gradient_records.LINEAR_TRANSPOSED, weight.format.block_size
    if low.target.activations == "bf16" and block_size > 1 and n_rows % amx.STEP == 0:
        halves = low.halves(node.dy)
        chunks = Chunks("tokens", 1 << 30, -(-n_cols // gradient_records.amx_sum_cols(block_size)))
        fields |= {"x": halves, "x_stride": halves.stride}
        scratch = gradient_records.amx_sum_scratch_bytes(block_size)
        low.add("linear_bf16_transposed", schema, chunks, [halves], [out], weight.format, scratch=scratch, **fields)
        return
    chunks = Chunks("tokens", gradient_records.TRANSPOSED_TOKENS, -(-n_cols // F32_TILE_COLS))
    scratch = gradient_records.TRANSPOSED_SCRATCH_BYTES
    low.add("linear_transposed", schema, chunks, [x], [out], weight.format, scratch=scratch, x=x, **fields)


@rule(RMSNormBackward)
def lower_rms_norm_backward(low: Lowering, node: RMSNormBackward) -> None:
    x, dy, out = low.read(node.x), low.read(node.dy), low.make(node)
    low.add_rows(
        "rms_norm_backward",
        gradient_records.RMS_NORM_BACKWARD,
        x,
        [x, dy],
        [out],
        x=x,
        dy=dy,
        weight=low.floats(node.weight),
        out=out,
        n_groups=node.n_heads,
        n_cols=x.width // node.n_heads,
        epsilon=node.epsilon,
    )


@rule(LayerNormBackward)
def lower_layer_norm_backward(low: Lowering, node: LayerNormBackward) -> None:
    x, dy, out = low.read(node.x), low.read(node.dy), low.make(node)
    n_cols = x.width // node.n_heads
    low.add_rows(
        "layer_norm_backward",
        gradient_records.LAYER_NORM_BACKWARD,
        x,
        [x, dy],
        [out],
        x=x,
        dy=dy,
        weight=low.floats(node.weight),
        weight_step=n_cols if len(node.weight.shape) == 2 else 0,
        out=out,
        n_groups=node.n_heads,
        n_cols=n_cols,
        epsilon=node.epsilon,
    )


@rule(SoftCapBackward)
def lower_soft_cap_backward(low: Lowering, node: SoftCapBackward) -> None:
    y = low.read(node.y)
    dy, out = low.make_from(node.dy, node)
    schema = gradient_records.SOFT_CAP_BACKWARD
    low.add_rows("soft_cap_backward", schema, y, [y, dy], [out], y=y, dy=dy, out=out, cap=node.cap)


@rule(GLUBackward)
def lower_glu_backward(low: Lowering, node: GLUBackward) -> None:
    gate, up, dy = low.read(node.gate), low.read(node.up), low.read(node.dy)
    dgate, dup = low.make_all(node)
    low.add_rows(
        "glu_backward",
        gradient_records.GLU_BACKWARD,
        gate,
        [gate, up, dy],
        [dgate, dup],
        options={"activation": node.activation},
        gate=gate,
        up=up,
        dy=dy,
        d_gate=dgate,
        d_up=dup,
    )


@rule(ActivateBackward)
def lower_activate_backward(low: Lowering, node: ActivateBackward) -> None:
    x = low.read(node.x)
    dy, out = low.make_from(node.dy, node)
    fields = {"options": {"activation": node.activation}, "x": x, "dy": dy, "out": out}
    low.add_rows("activate_backward", gradient_records.ACTIVATE_BACKWARD, x, [x, dy], [out], **fields)


@rule(AttentionBackward)
def lower_attention_backward(low: Lowering, node: AttentionBackward) -> None:
    _refuse_what_is_not_built(node)
    q, k, v, dy = (low.read(value) for value in (node.q, node.k, node.v, node.dy))
    dq, dk, dv = low.make_all(node)
    n_kv_heads, group = node.n_kv_heads, node.n_heads // node.n_kv_heads
    head_dim = q.width // node.n_heads
    # Each part of a group of heads can be a thread's. How many there are depends on the model alone, for another number
    # is another order of sums.
    enough = (n for n in range(1, group) if group % n == 0 and n * n_kv_heads >= LEAST_CHUNKS)
    n_parts = next(enough, group)
    parts = (dk, dv) if n_parts == 1 else tuple(Rows(n_parts * rows.width, "gradients by head") for rows in (dk, dv))
    spec, window = node.spec, node.spec.window or NO_WINDOW
    general = spec.soft_cap is not None or spec.sinks is not None or spec.alibi is not None
    low.add(
        "attention_backward",
        gradient_records.ATTENTION_BACKWARD,
        Chunks("documents", 1, n_kv_heads * n_parts),
        [q, k, v, dy],
        [dq, *parts],
        options={"general": general},
        scratch=gradient_records.attention_backward_scratch_bytes(low.longest, head_dim, window, general=general),
        q=q,
        dout=dy,
        dq=dq,
        q_stride=q.stride,
        k=k,
        v=v,
        kv_stride=k.stride,
        dk=parts[0],
        dv=parts[1],
        dkv_stride=parts[0].stride,
        n_kv_heads=n_kv_heads,
        group=group,
        n_parts=n_parts,
        head_dim=head_dim,
        scale=spec.scale,
        window=window,
        ahead=0,
        cap=spec.soft_cap or 0.0,
        biases=0 if spec.alibi is None else np.ascontiguousarray(spec.alibi, np.float32),
        sinks=0 if spec.sinks is None else low.floats(spec.sinks),
        documents=DOCUMENTS,
    )
    if n_parts > 1:
        for part, out in zip(parts, (dk, dv), strict=True):
            low.add_rows(
                "sum_heads",
                gradient_records.SUM_HEADS,
                part,
                [part],
                [out],
                x=part,
                n_heads=n_kv_heads,
                n_parts=n_parts,
                head_dim=head_dim,
                out=out,
                out_stride=out.stride,
            )


def _refuse_what_is_not_built(node: AttentionBackward) -> None:
    """Raises UnsupportedError naming it."""
    spec, widths = node.spec, (node.k.width // node.n_kv_heads, node.v.width // node.n_kv_heads)
    missing = {
        "that is not causal": not spec.causal,
        "with keys of {} and values of {} dimensions".format(*widths): widths[0] != widths[1],
    }
    for what, is_asked in missing.items():
        if is_asked:
            raise UnsupportedError(f"training through attention {what} is not built yet")


@rule(CrossEntropy)
def lower_cross_entropy(low: Lowering, node: CrossEntropy) -> None:
    values = low.graph.all_made_by(node)
    losses = low.new_rows(values[0])
    x, gradient = low.make_value_from(node.logits, values[1]) if node.with_gradient else (low.read(node.logits), None)
    low.add(
        "cross_entropy",
        gradient_records.CROSS_ENTROPY,
        Chunks("tokens"),
        [x],
        [losses] if gradient is None else [losses, gradient],
        x=x,
        out=0 if gradient is None else gradient,
        stride=x.stride,
        n_cols=x.width,
        weights=TARGET_WEIGHTS,
        nll=losses,
        nll_stride=losses.stride,
    )


@rule(ColumnSum)
def lower_column_sum(low: Lowering, node: ColumnSum) -> None:
    a = low.read(node.a)
    _add_columns(low, "column_sums", gradient_records.COLUMN_SUMS, node.to, a.width, [a], x=a, stride=a.stride)


@rule(ColumnProductSum)
def lower_column_product_sum(low: Lowering, node: ColumnProductSum) -> None:
    a, b = low.read(node.a), low.read(node.b)
    _add_columns(
        low, "column_products", gradient_records.COLUMN_PRODUCTS, node.to, a.width, [a, b], a=a, b=b, stride=a.stride
    )


@rule(RMSNormWeightSum)
def lower_rms_norm_weight_sum(low: Lowering, node: RMSNormWeightSum) -> None:
    x, dy = low.read(node.x), low.read(node.dy)
    fields = {"x": x, "dy": dy, "stride": x.stride, "n_groups": node.n_heads, "epsilon": node.epsilon}
    n_cols = x.width // node.n_heads
    _add_columns(low, "rms_norm_weight_sum", gradient_records.RMS_NORM_WEIGHT_SUM, node.to, n_cols, [x, dy], **fields)


@rule(LayerNormSums)
def lower_layer_norm_sums(low: Lowering, node: LayerNormSums) -> None:
    x, dy = low.read(node.x), low.read(node.dy)
    n_cols = x.width // node.n_heads
    found = [to for to in (node.to, node.bias_to) if to is not None]
    low.add(
        "layer_norm_sums",
        gradient_records.LAYER_NORM_SUMS,
        Chunks("tokens", 1 << 30, -(-n_cols // SUM_COLS)),
        [x, dy],
        [memory_of(to) for to in found],
        x=x,
        dy=dy,
        stride=x.stride,
        n_groups=node.n_heads,
        n_cols=n_cols,
        epsilon=node.epsilon,
        step=n_cols if found[0].ndim == 2 else 0,
        sums=0 if node.to is None else node.to,
        bias_sums=0 if node.bias_to is None else node.bias_to,
        chunk_cols=SUM_COLS,
    )


@rule(EmbedSum)
def lower_embed_sum(low: Lowering, node: EmbedSum) -> None:
    dy = low.read(node.dy)
    ids = POSITIONS if node.by_position else TOKEN_IDS
    fields = {"ids": ids, "dy": dy, "stride": dy.stride, "scale": node.scale}
    _add_columns(low, "embed_backward", gradient_records.EMBED_BACKWARD, node.to, dy.width, [dy], **fields)


@rule(ReplacedRowsSum)
def lower_replaced_rows_sum(low: Lowering, node: ReplacedRowsSum) -> None:
    dy = low.read(node.dy)
    fields = {"dy": dy, "stride": dy.stride, "places": Table(node.places)}
    _add_columns(low, "replaced_rows_sum", gradient_records.REPLACED_ROWS_SUM, node.to, dy.width, [dy], **fields)


def _add_columns(
    low: Lowering, op: str, schema: Schema, to: np.ndarray, n_cols: int, reads: list[Rows], **fields: Any
) -> None:
    """An op that adds up columns over all tokens: each column is one thread's."""
    chunks = Chunks("tokens", 1 << 30, -(-n_cols // SUM_COLS))
    low.add(op, schema, chunks, reads, [memory_of(to)], n_cols=n_cols, sums=to, chunk_cols=SUM_COLS, **fields)


@rule(ToBF16)
def lower_to_bf16(low: Lowering, node: ToBF16) -> None:
    x, out = low.read(node.x), low.make(node)
    low.add_rows("to_bf16", gradient_records.BF16_ROWS, x, [x], [out], x=x, halves=out, halves_stride=out.stride)


@rule(FromBF16)
def lower_from_bf16(low: Lowering, node: FromBF16) -> None:
    x, out = low.read(node.x), low.make(node)
    low.add_rows("from_bf16", gradient_records.BF16_ROWS, out, [x], [out], x=out, halves=x, halves_stride=x.stride)
