"""The records of what goes backwards through mixtures of experts; see `expert_records` for what a pair is."""

from __future__ import annotations

from edgellm.kernels.gradient_records import (
    OUTER_COLS,
    OUTER_ROWS,
    OUTER_TOKENS,
    TRANSPOSED_ROWS,
    TRANSPOSED_TILE_BYTES,
)
from edgellm.kernels.records import BATCH
from edgellm.kernels.schema import Schema

ROUTE_BACKWARD = Schema(
    "route_backward",
    batch=BATCH,
    logits="ptr",
    stride="i64",  # of logits and of their gradient
    n_experts="i64",
    n_used="i64",
    normalize="i64",
    scale="f64",
    scales="ptr",  # as in ROUTE
    chosen="ptr",  # what the router found
    chosen_stride="i64",
    dy="ptr",  # by the weights, float32 [n_tokens, n_used]
    dy_stride="i64",
    out="ptr",  # by the logits, float32 [n_tokens, n_experts]
    chunk_tokens="i64",
    scratch="ptr",
    scratch_bytes="i64",
)


def route_backward_scratch_bytes(n_experts: int, n_used: int) -> int:
    """Of each thread: scores of all experts, those of the chosen ones, and the gradients by these."""
    return 4 * (n_experts + 2 * n_used)


BALANCE_GRADIENT = Schema(
    "balance_gradient",
    batch=BATCH,
    logits="ptr",
    stride="i64",  # of logits and of their gradient
    n_experts="i64",
    n_used="i64",
    chosen="ptr",
    chosen_stride="i64",
    scale="ptr",  # float32, one number
    seen="ptr",  # float32 [2, n_experts]: tokens of each expert, and sums of its softmax
    out="ptr",
)

SUM_EXPERTS_BACKWARD = Schema(
    "sum_experts_backward",
    batch=BATCH,
    x="ptr",  # the pairs' results, and their gradient
    d_x="ptr",  # may be x
    stride="i64",
    weights="ptr",
    d_weights="ptr",
    weights_stride="i64",
    n_used="i64",
    n_cols="i64",
    dy="ptr",
    dy_stride="i64",
    chunk_tokens="i64",
)

GATE_BACKWARD = Schema(
    "gate_backward",
    batch=BATCH,
    x="ptr",
    d_x="ptr",  # may be x or dy
    dy="ptr",
    stride="i64",
    n_cols="i64",
    gate="ptr",
    d_gate="ptr",
    gate_stride="i64",
    is_one="i64",
    chunk_tokens="i64",
)

PAIRS = 64  # of an expert that meet a piece of its columns together

EXPERTS_TRANSPOSED = Schema(
    "experts_transposed",
    batch=BATCH,
    weights="ptr",
    expert_bytes="i64",
    row_bytes="i64",
    n_rows="i64",
    n_cols="i64",
    n_experts="i64",
    n_used="i64",
    order="ptr",
    ends="ptr",
    x="ptr",  # float32 [n_tokens, n_used * n_rows]
    x_stride="i64",
    out="ptr",  # float32 [n_tokens, n_used * n_cols]
    out_stride="i64",
    scratch="ptr",
    scratch_bytes="i64",  # each thread's own: EXPERTS_TRANSPOSED_SCRATCH_BYTES
)
EXPERTS_TRANSPOSED_SCRATCH_BYTES = (TRANSPOSED_ROWS + PAIRS) * TRANSPOSED_TILE_BYTES + 4 * PAIRS * TRANSPOSED_ROWS

EXPERT_OUTER_SUM = Schema(
    "expert_outer_sum",
    batch=BATCH,
    a="ptr",  # float32 [n_tokens, n_used * n_rows]
    a_stride="i64",
    b="ptr",  # float32 [n_tokens, n_cols], or n_used as many: see b_parts
    b_stride="i64",
    b_parts="i64",  # 1, or n_used
    g="ptr",  # float32 [n_experts, n_rows, n_cols]
    n_rows="i64",
    n_cols="i64",
    n_experts="i64",
    n_used="i64",
    order="ptr",
    ends="ptr",
    scratch="ptr",
    scratch_bytes="i64",  # each thread's own: EXPERT_OUTER_SCRATCH_BYTES
)
EXPERT_OUTER_SCRATCH_BYTES = 4 * (OUTER_ROWS * OUTER_COLS + OUTER_TOKENS * (OUTER_ROWS + OUTER_COLS))

EXPERT_BIAS_SUM = Schema(
    "expert_bias_sum",
    batch=BATCH,
    x="ptr",
    stride="i64",
    n_cols="i64",  # of a pair
    n_experts="i64",
    n_used="i64",
    chosen="ptr",
    chosen_stride="i64",
    sums="ptr",  # float32 [n_experts, n_cols]
    chunk_cols="i64",
)
