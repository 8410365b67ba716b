"""The records of mixtures of experts: of each token, a router chooses `n_used` of `n_experts`, which compute it.

A token and one of its experts are a *pair*; pairs are counted token by token, so pair p is the (p % n_used)-th expert
of token p // n_used. Results of the pairs of a token lie side by side in its row.
"""

from __future__ import annotations

from edgellm.kernels.records import BATCH, QUANTIZED, TILE_ROWS
from edgellm.kernels.schema import Schema

ROUTE = Schema(
    "route",
    batch=BATCH,
    logits="ptr",
    stride="i64",
    n_experts="i64",
    bias="ptr",  # float32 [n_experts], added to scores where experts are chosen, and nowhere else; or 0
    n_groups="i64",  # experts come in so many equal groups, ...
    n_groups_used="i64",  # ... of which only the best count
    n_ranked="i64",  # a group is as good as so many of its best experts together
    n_used="i64",
    normalize="i64",  # 1: the weights of a token add up to 1, before they are scaled
    scale="f64",
    scales="ptr",  # float32 [n_experts], by what the weight of each is multiplied then; or 0
    chosen="ptr",  # float32 [n_tokens, n_used]: numbers of experts, the best first
    weights="ptr",  # float32 [n_tokens, n_used]
    out_stride="i64",
    chunk_tokens="i64",
    scratch="ptr",
    scratch_bytes="i64",
)


def route_scratch_bytes(n_experts: int, n_groups: int) -> int:
    """Of each thread: scores, what is chosen by, and how good each group is."""
    return 4 * (2 * n_experts + n_groups)


SORT_EXPERTS = Schema(
    "sort_experts",
    batch=BATCH,
    n_experts="i64",
    n_used="i64",
    chosen="ptr",  # float32 rows; 0: every token has all experts, in their order
    chosen_stride="i64",
    order="ptr",  # int64 [n_tokens * n_used]: pairs, expert by expert
    ends="ptr",  # int64 [n_experts]: where the pairs of each end
)

EXPERTS = Schema(
    "experts",
    batch=BATCH,
    weights="ptr",  # of all experts, one behind the other
    expert_bytes="i64",
    row_bytes="i64",
    n_rows="i64",
    n_cols="i64",
    n_experts="i64",
    n_used="i64",
    chosen="ptr",
    chosen_stride="i64",
    order="ptr",  # see SORT_EXPERTS; kernels for few tokens do without
    ends="ptr",
    x_parts="i64",  # inputs of a token: 1 for all its pairs, or n_used, one for each
    x="ptr",
    x_stride="i64",  # float32 input, one token's parts side by side
    xq=QUANTIZED,  # int8 input
    out="ptr",  # float32 [n_tokens, n_used * n_rows]
    out_stride="i64",
    chunk_rows="i64",  # of an expert, that a thread takes at a time: see `chunks_of`
    chunks_of="i64",  # chunks of an expert (many tokens) or of a pair (few)
    small_chunk_rows="i64",
    small_chunks_of="i64",
    prefetch_distance="i64",  # in bytes, for few tokens
    n_threads="i64",
    scratch="ptr",
    scratch_bytes="i64",
)


def experts_scratch_bytes(n_cols: int, n_scales: int, n_tokens: int) -> int:
    """Of each thread: a tile of bytes with its scales and biases, inputs of so many tokens, and their results."""
    return TILE_ROWS * (n_cols + 8 * n_scales) + n_tokens * (2 * n_cols + 4 * TILE_ROWS)


def experts_f32_scratch_bytes(n_cols: int, n_tokens: int) -> int:
    """The same for a tile of float32."""
    return 4 * (TILE_ROWS * n_cols + n_tokens * (n_cols + TILE_ROWS))


ADD_EXPERT_BIAS = Schema(
    "add_expert_bias",
    batch=BATCH,
    x="ptr",
    out="ptr",  # may be x
    stride="i64",
    n_cols="i64",  # of a pair
    bias="ptr",  # float32 [n_experts, n_cols]
    n_experts="i64",
    n_used="i64",
    chosen="ptr",
    chosen_stride="i64",
    chunk_tokens="i64",
)

SUM_EXPERTS = Schema(
    "sum_experts",
    batch=BATCH,
    x="ptr",
    stride="i64",
    weights="ptr",  # float32 [n_tokens, n_used]
    weights_stride="i64",
    n_used="i64",
    n_cols="i64",
    out="ptr",
    out_stride="i64",
    chunk_tokens="i64",
)

SUM_EXPERT_SQUARES = Schema(
    "sum_expert_squares",
    batch=BATCH,
    x="ptr",
    stride="i64",
    x_parts="i64",  # as in EXPERTS
    n_cols="i64",
    n_experts="i64",
    n_used="i64",
    chosen="ptr",
    chosen_stride="i64",
    sums="ptr",  # float64 [n_experts, n_cols]: what the squares of this batch are added to
    counts="ptr",  # float64 [n_experts]: and the tokens that each expert had
    chunk_cols="i64",
)

GATE = Schema(
    "gate",
    batch=BATCH,
    x="ptr",
    out="ptr",  # may be x
    stride="i64",
    n_cols="i64",
    gate="ptr",
    gate_stride="i64",
    is_one="i64",  # 1: a row's gate is one number, 0: as many as the row has
    chunk_tokens="i64",
)
