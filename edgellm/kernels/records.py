"""The records of all kernels: what each op is told, word by word. Sizes count elements, strides count floats.

Activations are float32 rows, one a token, `stride` floats apart (the width rounded up to ROW_ALIGN). For the
integer kernels the same rows stand once more as int8 in groups of 32 (see `QUANTIZED`).
"""

from __future__ import annotations

from edgellm.kernels.schema import Schema

ROW_ALIGN = 16  # floats: rows start on a cache line, and a tile may write 16 outputs at once
KV_BLOCK = 64  # tokens in a block of the KV cache
SPAN_TOKENS = 256  # positions whose attention is summed by itself, a multiple of KV_BLOCK
ATTENTION_TILE_ROWS = 6  # query rows that meet a key or value together
TILE_ROWS = 16  # weight rows that a prefill tile unpacks together
F32_TILE_COLS = 256  # columns of a tile of float32: a multiple of every block, and few enough for a first level cache

BATCH = Schema(
    "batch",
    n_tokens="i64",
    token_ids="ptr",  # int32 [n_tokens]
    kv_slots="ptr",  # int64 [n_tokens]: block * KV_BLOCK + place in the block
    rows="ptr",  # int64 [n_tokens]: which rows `select_rows` takes
)

# Activations as int8: value = q * d. The sums let a kernel add `bias * sum(x)` for formats with a minimum
# or with an offset, without touching every element again.
# In two planes, there is a second one behind the first of every token, in each of the arrays:
# value = q1 * d1 + q2 * d2, about as exact as 16 bits.
QUANTIZED = Schema(
    "quantized",
    q="ptr",  # int8 [n_tokens, n_planes, n_cols]
    d="ptr",  # float32 [n_tokens, n_planes, n_cols / 32]
    sum32="ptr",  # float32 [n_tokens, n_planes, n_cols / 32]: d times the sum of the group
    sum16="ptr",  # float32 [n_tokens, n_planes, n_cols / 16]: the same by halves of a group
)

EMBED = Schema("embed", batch=BATCH, weights="ptr", row_bytes="i64", n_cols="i64", scale="f64", out="ptr", stride="i64")

SELECT_ROWS = Schema("select_rows", batch=BATCH, x="ptr", out="ptr", stride="i64")

RMS_NORM = Schema(
    "rms_norm",
    batch=BATCH,
    x="ptr",
    weight="ptr",
    out="ptr",
    stride="i64",
    out_stride="i64",
    n_groups="i64",  # heads that are each normalized by themselves; 1 for a whole row
    n_cols="i64",
    epsilon="f64",
    chunk_tokens="i64",
)

QUANTIZE = Schema("quantize", batch=BATCH, x="ptr", stride="i64", n_cols="i64", to=QUANTIZED, chunk_tokens="i64")

LINEAR = Schema(
    "linear",
    batch=BATCH,
    weights="ptr",
    row_bytes="i64",
    n_rows="i64",
    n_cols="i64",
    x="ptr",
    x_stride="i64",  # float32 input, for float weights
    xq=QUANTIZED,  # int8 input, for quantized weights
    out="ptr",
    out_stride="i64",
    chunk_rows="i64",  # rows a thread takes at a time in decode
    # What decode prefetches: weights so many bytes further on, and towards the end of a chunk those of its thread's
    # next one, or of the next op.
    prefetch_distance="i64",
    n_threads="i64",
    next_weights="ptr",  # of the next op that has any; its own where it is the last
    next_step="i64",  # bytes from one of its chunks to the next
    scratch="ptr",
    scratch_bytes="i64",  # each thread's own, for the unpacked tile
)

ADD = Schema("add", batch=BATCH, a="ptr", b="ptr", out="ptr", stride="i64", chunk_tokens="i64")

ADD_BIAS = Schema(
    "add_bias", batch=BATCH, x="ptr", bias="ptr", out="ptr", n_cols="i64", stride="i64", chunk_tokens="i64"
)

CHOOSE = Schema(
    "choose",
    batch=BATCH,
    x="ptr",
    other="ptr",
    scales="ptr",  # float32 [n_tokens]: rows that count something are those of `other`
    out="ptr",  # may be x
    stride="i64",
    chunk_tokens="i64",
)

RESIZE_HEADS = Schema(
    "resize_heads",
    batch=BATCH,
    x="ptr",
    stride="i64",
    head_dim="i64",
    out="ptr",
    out_stride="i64",
    out_head_dim="i64",
    n_heads="i64",
    chunk_tokens="i64",
)

SUM_SQUARES = Schema(
    "sum_squares",
    batch=BATCH,
    x="ptr",
    stride="i64",
    sums="ptr",  # float64 [stride]: what the squares of this batch are added to
    chunk_cols="i64",  # a multiple of ROW_ALIGN
)

MAXIMA_GROUP = 64  # neighbouring numbers of which the largest is found

MAXIMA = Schema(
    "maxima",
    batch=BATCH,
    x="ptr",
    stride="i64",
    n_cols="i64",
    out="ptr",  # float32 [n_tokens, n_cols / MAXIMA_GROUP, rounded up]
    out_stride="i64",
    chunk_groups="i64",
    chunks_per_token="i64",
)

GLU = Schema("glu", batch=BATCH, gate="ptr", up="ptr", out="ptr", stride="i64", chunk_tokens="i64")

# --- training: what goes backwards through a linear layer (see ops/linear_transposed.py, ops/outer_sum.py) ---

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

ROPE = Schema(
    "rope",
    batch=BATCH,
    x="ptr",
    out="ptr",  # may be x
    stride="i64",
    n_heads="i64",
    head_dim="i64",
    n_rot="i64",  # leading dimensions of a head that are rotated
    pair_step="i64",  # 1: pairs are neighbours; n_rot / 2: pairs are half a head apart
    table="ptr",  # float32 [n_tokens, 2, n_rot / 2]: cosines, then sines
    chunk_tokens="i64",
)

KV_APPEND = Schema(
    "kv_append",
    batch=BATCH,
    k="ptr",
    v="ptr",
    stride="i64",
    n_heads="i64",
    head_dim="i64",
    cache="ptr",
    block_bytes="i64",
    chunk_tokens="i64",
)

# One slice of attention: consecutive tokens of one sequence against a range of its positions.
ATTENTION_TASK = Schema(
    "attention_task",
    token="i64",  # first token of the slice in the batch
    n_tokens="i64",
    position="i64",  # of that token in its sequence
    kv_begin="i64",
    kv_end="i64",  # positions of this slice, before causality and window
    block_table="ptr",  # int32: the cache block of every KV_BLOCK positions
    slot="i64",  # where the partial result goes, or -1: this is the whole result
)

ATTENTION = Schema(
    "attention",
    batch=BATCH,
    q="ptr",
    q_stride="i64",
    out="ptr",
    out_stride="i64",
    n_kv_heads="i64",
    group="i64",
    head_dim="i64",
    scale="f64",
    window="i64",  # positions a token looks back over, itself included
    cache="ptr",
    block_bytes="i64",
    tasks="ptr",
    chunk_count="ptr",  # int64: how many chunks this run has, n_kv_heads for each task
    n_threads="i64",
    partial="ptr",
    scratch="ptr",
    scratch_bytes="i64",
)


def attention_scratch_bytes(n_rows: int, head_dim: int) -> int:
    """Of each thread, for slices of n_rows: queries, two results, the scores of a span, and a tile's scaled weights."""
    return 4 * (n_rows * (3 * head_dim + 4 + SPAN_TOKENS) + ATTENTION_TILE_ROWS * KV_BLOCK)


# A token whose attention was split over ranges of positions: partial results first_slot, first_slot + 1, ...
MERGE_TASK = Schema("merge_task", token="i64", first_slot="i64", n_slots="i64")

ATTENTION_MERGE = Schema(
    "attention_merge",
    batch=BATCH,
    tasks="ptr",
    partial="ptr",
    out="ptr",
    out_stride="i64",
    n_heads="i64",
    head_dim="i64",
    scratch="ptr",
    scratch_bytes="i64",
)

# --- training: gradients of attention (see ops/attention_backward.py) ----------------------------------------

GRADIENT_TILE_TOKENS = 32  # queries whose scores are computed together

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
    documents="ptr",  # a DOCUMENT_TASK each
    scratch="ptr",
    scratch_bytes="i64",
)


def attention_backward_scratch_bytes(n_tokens: int, head_dim: int, window: int, ahead: int = 0) -> int:
    """Of each thread, for documents of up to n_tokens: a tile of queries, and for all keys that they see, probabilities
    and the gradients of scores."""
    n_keys = min(n_tokens, window + ahead + GRADIENT_TILE_TOKENS - 1)
    return 4 * GRADIENT_TILE_TOKENS * (head_dim + 2 * n_keys)


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

# --- low-rank steps beside a linear, and training: see ops/low_rank.py and the ops named *_backward -----------

NARROW = Schema(
    "narrow",
    batch=BATCH,
    x="ptr",
    stride="i64",
    n_cols="i64",
    weight="ptr",  # float32 or float16 [rank, n_cols]; read twice as fast where it begins with a cache line
    rank="i64",
    scale="f64",
    scales="ptr",  # float32 [n_tokens], or 0: a row that counts 0 is not computed
    out="ptr",
    out_stride="i64",
    chunk_tokens="i64",
)

WIDEN = Schema(
    "widen",
    batch=BATCH,
    y="ptr",
    out="ptr",  # may be y
    stride="i64",
    n_cols="i64",
    h="ptr",
    h_stride="i64",
    weight="ptr",  # float32 or float16 [rank, n_cols]
    rank="i64",
    scale="f64",
    scales="ptr",  # float32 [n_tokens], or 0: how much of it each row takes
    chunk_tokens="i64",
)

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

MULTIPLY_COLUMNS = Schema(
    "multiply_columns", batch=BATCH, x="ptr", weight="ptr", out="ptr", n_cols="i64", stride="i64", chunk_tokens="i64"
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

ACTIVATE = Schema("activate", batch=BATCH, x="ptr", out="ptr", stride="i64", chunk_tokens="i64")

ACTIVATE_BACKWARD = Schema(
    "activate_backward", batch=BATCH, x="ptr", dy="ptr", out="ptr", stride="i64", chunk_tokens="i64"
)

REPLACE_ROWS = Schema(
    "replace_rows",
    batch=BATCH,
    x="ptr",
    out="ptr",  # may be x
    stride="i64",
    n_cols="i64",
    table="ptr",  # float32 [n_rows, n_cols], or 0: all its rows are 0
    places="ptr",  # float32 [n_tokens]: i takes row i - 1 of the table, 0 leaves the row as it is
    chunk_tokens="i64",
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

EMBED_BACKWARD = Schema(
    "embed_backward",
    batch=BATCH,
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

# --- quantizing weights (see ops/fit.py) -------------------------------------------------------------------

FIT = Schema(
    "fit",
    x="ptr",  # float32 [n_blocks, block_size]
    importance="ptr",  # float32 of the same shape, or 0: all weights count alike
    n_blocks="i64",
    chunk_blocks="i64",
    targets="ptr",  # float32 [n_targets]
    n_targets="i64",
    d="ptr",  # float32 [n_blocks]
    m="ptr",  # float32 [n_blocks]
    scale="ptr",  # int8 [n_blocks, n_groups]
    minimum="ptr",  # int8 [n_blocks, n_groups]
    q="ptr",  # uint8 [n_blocks, block_size]
    scratch="ptr",
    scratch_bytes="i64",  # each thread's own
)


def fit_scratch_bytes(lanes: int, block_size: int, n_groups: int) -> int:
    """Of each thread: weights and importance of as many blocks as a register has lanes, and two numbers a group."""
    return 4 * lanes * (2 * block_size + 2 * n_groups)


# --- measuring: what the machine can do at most, and when an op was done (see ops/limits.py, ops/clock.py) ---

READ_LIMIT = Schema(
    "read_limit",
    batch=BATCH,
    memory="ptr",
    chunk_bytes="i64",  # a multiple of 512
    prefetch="i64",  # bytes ahead
    sums="ptr",  # int64 for each chunk: what its words add up to
)

# Registers of bytes to multiply: all of U_REGISTERS by the next S_PER_STEP of S_REGISTERS is a step. So many sums
# are enough for the multiplies to overlap, and few enough for sixteen registers; all operands fit into the first
# level cache, which gives them as fast as they are used.
U_REGISTERS, S_PER_STEP, S_REGISTERS = 3, 4, 64

MULTIPLY_LIMIT = Schema(
    "multiply_limit",
    batch=BATCH,
    u="ptr",  # bytes from 0 to 127
    s="ptr",  # signed bytes, gone through again and again
    n_steps="i64",  # in a chunk
    sums="ptr",  # int64 for each chunk: all products added, wrapped to 32 bits
)

CLOCK = Schema(
    "clock",
    batch=BATCH,
    function="ptr",  # the system's: function(first, second) writes the time somewhere
    first="i64",
    second="i64",
)

# --- the program and the team that runs it (see ops/run.py) ------------------------------------------------

OP = Schema(
    "op",
    kernel="ptr",
    record="ptr",
    depends="i64",  # so many ops, from the first on, must be done before this one starts
    # Weights that this op reads, or the next one with any: who waits prefetches the start of a thread's chunk.
    prefetch="ptr",
    prefetch_step="i64",  # bytes from one chunk to the next
    prefetch_bytes="i64",  # of each
)

FUSED_PART = Schema("fused_part", kernel="ptr", record="ptr")

FUSED = Schema("fused", batch=BATCH, parts="ptr", n_parts="i64")  # a FUSED_PART each

PROGRAM = Schema(
    "program",
    ops="ptr",  # an OP each
    n_ops="i64",
    n_chunks="ptr",  # int64 [n_ops]: the chunks of this run; an op of 0 chunks is left out
    abort="i64",  # 1: what is left of this run is not done, and its results are worthless
)

# The progress of one run of a program: a cache line for each op.
PROGRESS = Schema("progress", claimed="i64", done="i64", n_chunks="i64", **{f"unused{i}": "i64" for i in range(5)})

TEAM = Schema(
    "team",
    generation="i64",  # even: a run is on (or over); odd: the leader is preparing the next
    program="ptr",
    progress="ptr",  # of the current run: one of `all_progress`, a PROGRESS for each op
    all_progress="ptr",
    n_progress="i64",
    progress_bytes="i64",
    seats="ptr",  # a cache line for each thread: which progress it is working on, 0 for none
    n_threads="i64",
    slice_ops="i64",  # after so many ops the leader returns, and is called again to go on
    stop="i64",
    yield_core="ptr",  # the system's function by which a thread lets others have its core
)
