"""Rules of mixtures of experts."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph.lowering.base import SQUARES_PER_CHUNK, Lowering, rule
from edgellm.graph.lowering.linear import ROWS_TOGETHER, prefetching
from edgellm.graph.nodes import Node, Value
from edgellm.graph.nodes.experts import AddExpertBias, ExpertLinear, Gate, Route, SumExperts
from edgellm.graph.ops import Chunks, Fixed, Rows, Tiled
from edgellm.kernels import expert_records as records
from edgellm.kernels.records import TILE_ROWS
from edgellm.quants.floats import FloatFormat

# With many tokens, chunks of all experts together: enough for threads to share, few enough to claim those of experts
# that nobody has.
CHUNKS = 512


@rule(Route)
def lower_route(low: Lowering, node: Route) -> None:
    logits, r = low.read(node.logits), node.routing
    chosen, weights = low.make_all(node)
    low.add_rows(
        "route",
        records.ROUTE,
        logits,
        [logits],
        [chosen, weights],
        options={"scoring": r.scoring},
        scratch=records.route_scratch_bytes(logits.width, r.n_groups),
        logits=logits,
        n_experts=logits.width,
        bias=0 if node.bias is None else low.floats(node.bias),
        n_groups=r.n_groups,
        n_groups_used=r.n_groups_used,
        n_ranked=r.n_ranked,
        n_used=r.n_used,
        normalize=int(r.normalize),
        scale=r.scale,
        scales=0 if node.scales is None else low.floats(node.scales),
        chosen=chosen,
        weights=weights,
        out_stride=chosen.stride,
    )


@rule(ExpertLinear)
def lower_expert_linear(low: Lowering, node: ExpertLinear) -> None:
    x, weight = low.read(node.x), node.weight
    chosen = None if node.chosen is None else low.read(node.chosen)
    out = low.make(node)
    n_experts, n_rows, n_cols = weight.shape
    isa = low.target.isa
    is_int8 = not isinstance(weight.format, FloatFormat) and low.target.activations == "int8"
    in_tiles = low.target.tiles.get(weight) if is_int8 else None
    large, small, rows_together = _kernels(low, weight, is_int8, in_tiles is not None)
    prefetches = prefetching(low, weight, rows_together, node.n_used * n_rows, in_tiles is not None)
    small_rows = min(prefetches["chunk_rows"], -(-n_rows // ROWS_TOGETHER) * ROWS_TOGETHER)
    n_tiles = -(-n_rows // TILE_ROWS)
    tiles = -(-n_tiles // max(1, min(n_tiles, CHUNKS // n_experts)))
    chunks_of, small_chunks_of = -(-n_tiles // tiles), -(-n_rows // small_rows)
    order, ends = sorted_pairs(low, node.chosen, chosen, n_experts, node.n_used, always=small is None)
    fields: dict[str, Any] = of_chosen(chosen, n_experts, node.n_used) | {
        "weights": weight if in_tiles is None else Tiled(weight, in_tiles),
        "expert_bytes": n_rows * weight.format.row_bytes(n_cols),
        "row_bytes": weight.format.row_bytes(n_cols),
        "n_rows": n_rows,
        "n_cols": n_cols,
        "order": order,
        "ends": ends,
        "x_parts": x.width // n_cols,
        "x_stride": x.stride,
        "out": out,
        "out_stride": out.stride,
        "chunk_rows": tiles * TILE_ROWS,
        "chunks_of": chunks_of,
        "small_chunk_rows": small_rows,
        "small_chunks_of": small_chunks_of,
        "prefetch_distance": prefetches["prefetch_distance"],
        "n_threads": low.target.tuning.n_threads,
    }
    if is_int8:
        source: Any = low.quantized(node.x, 1, weight.format)
        fields["xq"] = source
        scratch = records.experts_scratch_bytes(n_cols, n_cols // weight.format.scale_group, isa.tile_tokens)
    else:
        source = fields["x"] = x
        scratch = records.experts_f32_scratch_bytes(n_cols, isa.n_registers)
    low.add(
        large,
        records.EXPERTS,
        Chunks(
            "tokens", 1 << 30, n_experts * chunks_of, small_per_token=node.n_used * small_chunks_of if small else None
        ),
        [source, order, ends, *([chosen] if chosen else [])],
        [out],
        format=weight.format,
        small=small,
        scratch=scratch,
        **fields,
    )


def _kernels(low: Lowering, weight: Tensor, is_int8: bool, is_tiled: bool) -> tuple[str, str | None, int]:
    """The kernels for many and for few tokens, and how many rows of weights the latter multiplies at a time."""
    if is_tiled:
        return "experts_tiles_prefill", "experts_tiles", TILE_ROWS
    if is_int8:
        return "experts_prefill", "experts_decode", low.target.isa.lanes
    return "experts_f32", "experts_f32_decode" if isinstance(weight.format, FloatFormat) else None, ROWS_TOGETHER


def sorted_pairs(
    low: Lowering, value: Value | None, chosen: Rows | None, n_experts: int, n_used: int, always: bool
) -> tuple[Rows, Fixed]:
    """The pairs of a router sorted by expert, once for all linears; always: also of few tokens."""
    key = (value, n_experts, always)
    if key not in low.sorted_pairs:
        order, ends = low.sorted_pairs[key] = (
            Rows(2 * n_used, "pairs by expert"),
            Fixed(8 * n_experts, "ends of experts"),
        )
        low.add(
            "sort_experts",
            records.SORT_EXPERTS,
            Chunks("tokens", 1 << 30, small_batch=None if always else 0),
            [chosen] if chosen else [],
            [order, ends],
            order=order,
            ends=ends,
            **of_chosen(chosen, n_experts, n_used),
        )
    return low.sorted_pairs[key]


def of_chosen(chosen: Rows | None, n_experts: int, n_used: int) -> dict[str, Any]:
    stride = 0 if chosen is None else chosen.stride
    return {"chosen": chosen or 0, "chosen_stride": stride, "n_experts": n_experts, "n_used": n_used}


@rule(AddExpertBias)
def lower_add_expert_bias(low: Lowering, node: AddExpertBias) -> None:
    chosen = low.read(node.chosen)
    x, out = low.make_from(node.x, node)
    n_experts, n_cols = node.bias.shape
    low.add_rows(
        "add_expert_bias",
        records.ADD_EXPERT_BIAS,
        x,
        [x, chosen],
        [out],
        x=x,
        out=out,
        n_cols=n_cols,
        bias=low.floats(node.bias),
        **of_chosen(chosen, n_experts, node.chosen.width),
    )


@rule(SumExperts)
def lower_sum_experts(low: Lowering, node: SumExperts) -> None:
    x, weights, out = low.read(node.x), low.read(node.expert_weights), low.make(node)
    low.add_rows(
        "sum_experts",
        records.SUM_EXPERTS,
        x,
        [x, weights],
        [out],
        x=x,
        weights=weights,
        weights_stride=weights.stride,
        n_used=weights.width,
        n_cols=out.width,
        out=out,
        out_stride=out.stride,
    )


@rule(Gate)
def lower_gate(low: Lowering, node: Gate) -> None:
    by = low.read(node.gate)
    x, out = low.make_from(node.x, node)
    low.add_rows(
        "gate",
        records.GATE,
        x,
        [x, by],
        [out],
        x=x,
        out=out,
        n_cols=x.width,
        gate=by,
        gate_stride=by.stride,
        is_one=int(by.width == 1),
    )


def add_expert_squares(low: Lowering, node: Node, sums: np.ndarray, counts: np.ndarray) -> None:
    """In every run, add up the squares of what each expert is given, and how many tokens it has.

    sums: float64 [n_experts, n_in]; counts: float64 [n_experts].
    """
    assert isinstance(node, ExpertLinear)
    n_experts, n_cols = sums.shape
    x, chosen = low.rows(node.x), None if node.chosen is None else low.rows(node.chosen)
    low.add(
        "sum_expert_squares",
        records.SUM_EXPERT_SQUARES,
        Chunks("tokens", 1 << 30, -(-n_cols // SQUARES_PER_CHUNK)),
        [x, *([chosen] if chosen else [])],
        [],
        x=x,
        stride=x.stride,
        x_parts=x.width // n_cols,
        n_cols=n_cols,
        sums=sums,
        counts=counts,
        chunk_cols=SQUARES_PER_CHUNK,
        **of_chosen(chosen, n_experts, node.n_used),
    )
