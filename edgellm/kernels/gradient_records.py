"""The records of training's kernels: gradients, losses, and sums over the tokens of a batch. See `records`."""

from __future__ import annotations

from edgellm.kernels.encoder_records import QUERY_TILE
from edgellm.kernels.records import AMX_CONFIG_BYTES, BATCH, F32_TILE_COLS, ROW_ALIGN
from edgellm.kernels.schema import Schema

# --- what goes backwards through a linear layer (see ops/linear_transposed.py, ops/outer_sum.py) ---

# A tile of rows is unpacked and meets a piece of the tokens. Small enough for a second level cache, and many enough
# tokens that unpacking costs next to nothing.
TRANSPOSED_ROWS, TRANSPOSED_TOKENS = 64, 128

LINEAR_TRANSPOSED = Schema(
    "linear_transposed",
    batch=BATCH,
    weights="ptr",  # [n_rows, n_cols], as for LINEAR
    row_bytes="i64",
    n_rows="i64",
    n_cols="i64",
    x="ptr",  # float32 [n_tokens, n_rows]
    x_stride="i64",
    out="ptr",  # float32 [n_tokens, n_cols]
    out_stride="i64",
    scratch="ptr",
    scratch_bytes="i64",  # each thread's own: TRANSPOSED_SCRATCH_BYTES
)

# Rows of a tile are a cache line longer than what they hold, so that they do not all fall into few sets of a cache.
TRANSPOSED_TILE_BYTES = 4 * (F32_TILE_COLS + ROW_ALIGN)  # of a row
TRANSPOSED_SCRATCH_BYTES = TRANSPOSED_ROWS * TRANSPOSED_TILE_BYTES

# The same in bfloat16 (see ops/linear_bf16.py): rows of W x that a chunk makes, and columns of W that are unpacked
# together; rows of W that are unpacked together for x W, and columns that a chunk makes.
AMX_ROWS, AMX_COLS = 32, 2048
AMX_SUM_ROWS = 512
AMX_SCRATCH_BYTES = AMX_CONFIG_BYTES + 2 * AMX_ROWS * AMX_COLS


def amx_sum_cols(block_size: int) -> int:
    """Whole blocks, and few, for there are no more chunks than these make."""
    return max(64, block_size)


def amx_sum_scratch_bytes(block_size: int) -> int:
    return AMX_CONFIG_BYTES + 2 * AMX_SUM_ROWS * amx_sum_cols(block_size)


# A chunk is a tile of the sums; so many tokens are added to all of it before the next come.
OUTER_ROWS, OUTER_COLS, OUTER_TOKENS = 96, 256, 64

OUTER_SUM = Schema(
    "outer_sum",
    batch=BATCH,
    a="ptr",  # float32 [n_tokens, n_rows]
    a_stride="i64",
    b="ptr",  # float32 [n_tokens, n_cols]
    b_stride="i64",
    g="ptr",  # float32 [n_rows, n_cols]: what is added to, with nothing between the rows that may be written
    g_stride="i64",  # floats from one of its rows to the next; any number from n_cols on
    n_rows="i64",
    n_cols="i64",
    scale="f64",
    scratch="ptr",
    scratch_bytes="i64",  # each thread's own: OUTER_SCRATCH_BYTES
)

OUTER_SCRATCH_BYTES = 4 * OUTER_ROWS * ROW_ALIGN  # the last columns of a tile, where they do not fill a register

# --- gradients of attention (see ops/attention_backward.py) ----------------------------------------

GRADIENT_TILE_TOKENS = QUERY_TILE

# A text that attends to nothing but itself, in consecutive rows of the batch.
DOCUMENT_TASK = Schema("document_task", token="i64", n_tokens="i64")

ATTENTION_BACKWARD = Schema(
    "attention_backward",
    batch=BATCH,
    q="ptr",  # n_kv_heads * group heads, rotated
    dout="ptr",  # like q
    dq="ptr",  # like q
    q_stride="i64",  # of all three
    k="ptr",  # n_kv_heads heads, rotated
    v="ptr",  # like k
    kv_stride="i64",  # of both
    dk="ptr",  # n_kv_heads * n_parts heads
    dv="ptr",  # like dk
    dkv_stride="i64",  # of both
    n_kv_heads="i64",
    group="i64",  # query heads that share a key-value head
    n_parts="i64",  # of a group, a divisor: each has a chunk, and its own head in dk and dv (`sum_heads` adds them up)
    head_dim="i64",  # any
    scale="f64",
    window="i64",  # positions a token looks back over, itself included
    ahead="i64",  # positions after its own that it sees: 0 is causal
    cap="f64",  # of scores; 0 is none. This and the next two are for the general form of the kernel.
    biases="ptr",  # float32 for each query head, what scores lose for each position; or 0
    sinks="ptr",  # float32 for each query head; or 0
    documents="ptr",  # a DOCUMENT_TASK each
    scratch="ptr",
    scratch_bytes="i64",
)


def attention_backward_scratch_bytes(
    n_tokens: int, head_dim: int, window: int, ahead: int = 0, general: bool = False
) -> int:
    """Of each thread, for documents of up to n_tokens: a tile of queries, and for all keys that they see, probabilities
    and the gradients of scores; in the general form, slopes beside."""
    n_keys = min(n_tokens, window + ahead + GRADIENT_TILE_TOKENS - 1)
    return 4 * GRADIENT_TILE_TOKENS * (head_dim + (3 if general else 2) * n_keys)


SUM_HEADS = Schema(
    "sum_heads",
    batch=BATCH,
    x="ptr",  # n_heads * n_parts heads
    stride="i64",
    n_heads="i64",
    n_parts="i64",
    head_dim="i64",
    out="ptr",  # n_heads heads: each the sum of n_parts neighbours, first to last
    out_stride="i64",
    chunk_tokens="i64",
)

# --- rows, losses, and what is added up over the tokens (see the ops named *_backward) ------------------------

RMS_NORM_BACKWARD = Schema(
    "rms_norm_backward",
    batch=BATCH,
    x="ptr",
    weight="ptr",
    dy="ptr",
    out="ptr",  # may be dy
    stride="i64",
    n_groups="i64",
    n_cols="i64",
    epsilon="f64",
    chunk_tokens="i64",
)

LAYER_NORM_BACKWARD = Schema(
    "layer_norm_backward",
    batch=BATCH,
    x="ptr",
    weight="ptr",
    weight_step="i64",  # as in LAYER_NORM
    dy="ptr",
    out="ptr",  # may be dy
    stride="i64",
    n_groups="i64",
    n_cols="i64",
    epsilon="f64",
    chunk_tokens="i64",
)

SOFT_CAP_BACKWARD = Schema(
    "soft_cap_backward",
    batch=BATCH,
    y="ptr",  # what it made
    dy="ptr",
    out="ptr",  # may be dy
    stride="i64",
    cap="f64",
    chunk_tokens="i64",
)

GLU_BACKWARD = Schema(
    "glu_backward",
    batch=BATCH,
    gate="ptr",
    up="ptr",
    dy="ptr",
    d_gate="ptr",  # these two may be any two of the inputs
    d_up="ptr",
    stride="i64",
    chunk_tokens="i64",
)

BF16_ROWS = Schema(
    "bf16_rows",
    batch=BATCH,
    x="ptr",
    stride="i64",
    halves="ptr",  # bfloat16, as many as x has numbers
    halves_stride="i64",  # in units of four bytes, as all strides
    chunk_tokens="i64",
)

CROSS_ENTROPY = Schema(
    "cross_entropy",
    batch=BATCH,  # its rows: int64 [n_tokens], the target of each row of logits, or -1: nothing is learnt there
    x="ptr",
    out="ptr",  # the gradient by the logits; may be x, or 0: not wanted
    stride="i64",
    n_cols="i64",
    weights="ptr",  # float32 [n_tokens], or 0: all are 1
    nll="ptr",  # float32 for each row
    nll_stride="i64",
)

DROPOUT = Schema(
    "dropout",
    batch=BATCH,
    x="ptr",
    out="ptr",  # may be x
    stride="i64",
    p="f64",  # the share that is dropped, from 0 to below 1
    chance="ptr",  # int64 [2]: the seed, and whether anything is dropped now; 0 leaves all as it is
    chunk_tokens="i64",
)

ACTIVATE_BACKWARD = Schema(
    "activate_backward", batch=BATCH, x="ptr", dy="ptr", out="ptr", stride="i64", chunk_tokens="i64"
)

# What is added up over the tokens goes to memory of float32, and chunks are of columns.
COLUMN_SUMS = Schema("column_sums", batch=BATCH, x="ptr", stride="i64", n_cols="i64", sums="ptr", chunk_cols="i64")

COLUMN_PRODUCTS = Schema(
    "column_products", batch=BATCH, a="ptr", b="ptr", stride="i64", n_cols="i64", sums="ptr", chunk_cols="i64"
)

RMS_NORM_WEIGHT_SUM = Schema(
    "rms_norm_weight_sum",
    batch=BATCH,
    x="ptr",
    dy="ptr",
    stride="i64",
    n_groups="i64",
    n_cols="i64",
    epsilon="f64",
    sums="ptr",  # float32 [n_cols]
    chunk_cols="i64",
)

LAYER_NORM_SUMS = Schema(
    "layer_norm_sums",
    batch=BATCH,
    x="ptr",
    dy="ptr",
    stride="i64",
    n_groups="i64",
    n_cols="i64",
    epsilon="f64",
    step="i64",  # from the sums of a group to those of the next: n_cols, or 0 where all share them
    sums="ptr",  # by the weight, float32 [n_cols], or as many for each group; or 0
    bias_sums="ptr",  # by the bias, like `sums`; or 0
    chunk_cols="i64",
)

EMBED_BACKWARD = Schema(
    "embed_backward",
    batch=BATCH,
    ids="ptr",  # int32 [n_tokens]: the row of each token
    dy="ptr",
    stride="i64",
    n_cols="i64",
    scale="f64",
    sums="ptr",  # float32 [n_vocab, n_cols]
    chunk_cols="i64",
)

REPLACED_ROWS_SUM = Schema(
    "replaced_rows_sum",
    batch=BATCH,
    dy="ptr",
    stride="i64",
    n_cols="i64",
    places="ptr",  # as for REPLACE_ROWS
    sums="ptr",  # float32 [n_rows, n_cols]
    chunk_cols="i64",
)
