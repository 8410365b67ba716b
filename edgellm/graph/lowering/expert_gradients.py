"""Rules of the steps of a backward pass through mixtures of experts."""

from __future__ import annotations

from edgellm.graph.lowering.base import Lowering, rule
from edgellm.graph.lowering.experts import of_chosen, sorted_pairs
from edgellm.graph.lowering.gradients import SUM_COLS, memory_of
from edgellm.graph.nodes.expert_gradients import (
    BalanceGradient,
    ExpertBiasSum,
    ExpertLinearTransposed,
    ExpertOuterSum,
    GateBackward,
    RouteBackward,
    SumExpertsBackward,
    SumParts,
)
from edgellm.graph.ops import Chunks
from edgellm.kernels import expert_gradient_records as records
from edgellm.kernels import gradient_records
from edgellm.kernels.records import F32_TILE_COLS


@rule(RouteBackward)
def lower_route_backward(low: Lowering, node: RouteBackward) -> None:
    logits, chosen, dy, out = low.read(node.logits), low.read(node.chosen), low.read(node.dy), low.make(node)
    low.add_rows(
        "route_backward",
        records.ROUTE_BACKWARD,
        logits,
        [logits, chosen, dy],
        [out],
        options={"scoring": node.routing.scoring},
        scratch=records.route_backward_scratch_bytes(logits.width, chosen.width),
        logits=logits,
        n_experts=logits.width,
        n_used=chosen.width,
        normalize=int(node.routing.normalize),
        scale=node.routing.scale,
        scales=0 if node.scales is None else low.floats(node.scales),
        chosen=chosen,
        chosen_stride=chosen.stride,
        dy=dy,
        dy_stride=dy.stride,
        out=out,
    )


@rule(BalanceGradient)
def lower_balance_gradient(low: Lowering, node: BalanceGradient) -> None:
    logits, chosen, out = low.read(node.logits), low.read(node.chosen), low.make(node)
    low.add(
        "balance_gradient",
        records.BALANCE_GRADIENT,
        Chunks("tokens", 1 << 30),
        [logits, chosen],
        [out, memory_of(node.seen)],
        logits=logits,
        stride=logits.stride,
        scale=node.scale,
        seen=node.seen,
        out=out,
        **of_chosen(chosen, logits.width, chosen.width),
    )


@rule(ExpertLinearTransposed)
def lower_expert_linear_transposed(low: Lowering, node: ExpertLinearTransposed) -> None:
    x, chosen = low.read(node.dy), None if node.chosen is None else low.read(node.chosen)
    out, weight = low.make(node), node.weight
    n_experts, n_rows, n_cols = weight.shape
    order, ends = sorted_pairs(low, node.chosen, chosen, n_experts, node.n_used, always=True)
    low.add(
        "experts_transposed",
        records.EXPERTS_TRANSPOSED,
        Chunks("tokens", 1 << 30, n_experts * -(-n_cols // F32_TILE_COLS)),
        [x, order, ends],
        [out],
        format=weight.format,
        scratch=records.EXPERTS_TRANSPOSED_SCRATCH_BYTES,
        weights=weight,
        expert_bytes=n_rows * weight.format.row_bytes(n_cols),
        row_bytes=weight.format.row_bytes(n_cols),
        n_rows=n_rows,
        n_cols=n_cols,
        n_experts=n_experts,
        n_used=node.n_used,
        order=order,
        ends=ends,
        x=x,
        x_stride=x.stride,
        out=out,
        out_stride=out.stride,
    )


@rule(SumParts)
def lower_sum_parts(low: Lowering, node: SumParts) -> None:
    x, out = low.read(node.x), low.make(node)
    fields = {"x": x, "n_heads": 1, "n_parts": node.n_parts, "head_dim": out.width}
    schema = gradient_records.SUM_HEADS
    low.add_rows("sum_heads", schema, x, [x], [out], out=out, out_stride=out.stride, **fields)


@rule(SumExpertsBackward)
def lower_sum_experts_backward(low: Lowering, node: SumExpertsBackward) -> None:
    x, weights, dy = low.read(node.x), low.read(node.expert_weights), low.read(node.dy)
    d_x, d_weights = low.make_all(node)
    low.add_rows(
        "sum_experts_backward",
        records.SUM_EXPERTS_BACKWARD,
        x,
        [x, weights, dy],
        [d_x, d_weights],
        x=x,
        d_x=d_x,
        weights=weights,
        d_weights=d_weights,
        weights_stride=weights.stride,
        n_used=weights.width,
        n_cols=dy.width,
        dy=dy,
        dy_stride=dy.stride,
    )


@rule(GateBackward)
def lower_gate_backward(low: Lowering, node: GateBackward) -> None:
    x, by, dy = low.read(node.x), low.read(node.gate), low.read(node.dy)
    d_x, d_gate = low.make_all(node)
    low.add_rows(
        "gate_backward",
        records.GATE_BACKWARD,
        x,
        [x, by, dy],
        [d_x, d_gate],
        x=x,
        d_x=d_x,
        dy=dy,
        n_cols=x.width,
        gate=by,
        d_gate=d_gate,
        gate_stride=by.stride,
        is_one=int(by.width == 1),
    )


@rule(ExpertOuterSum)
def lower_expert_outer_sum(low: Lowering, node: ExpertOuterSum) -> None:
    a, b = low.read(node.a), low.read(node.b)
    chosen = None if node.chosen is None else low.read(node.chosen)
    n_experts, n_rows, n_cols = node.to.shape
    n_used = a.width // n_rows
    order, ends = sorted_pairs(low, node.chosen, chosen, n_experts, n_used, always=True)
    n_tiles = -(-n_rows // gradient_records.OUTER_ROWS) * -(-n_cols // gradient_records.OUTER_COLS)
    low.add(
        "expert_outer_sum",
        records.EXPERT_OUTER_SUM,
        Chunks("tokens", 1 << 30, n_experts * n_tiles),
        [a, b, order, ends],
        [memory_of(node.to)],
        scratch=records.EXPERT_OUTER_SCRATCH_BYTES,
        a=a,
        a_stride=a.stride,
        b=b,
        b_stride=b.stride,
        b_parts=b.width // n_cols,
        g=node.to,
        n_rows=n_rows,
        n_cols=n_cols,
        n_experts=n_experts,
        n_used=n_used,
        order=order,
        ends=ends,
    )


@rule(ExpertBiasSum)
def lower_expert_bias_sum(low: Lowering, node: ExpertBiasSum) -> None:
    a, chosen = low.read(node.a), low.read(node.chosen)
    n_experts, n_cols = node.to.shape
    low.add(
        "expert_bias_sum",
        records.EXPERT_BIAS_SUM,
        Chunks("tokens", 1 << 30, -(-n_cols // SUM_COLS)),
        [a, chosen],
        [memory_of(node.to)],
        x=a,
        stride=a.stride,
        n_cols=n_cols,
        sums=node.to,
        chunk_cols=SUM_COLS,
        **of_chosen(chosen, n_experts, chosen.width),
    )
