"""The records of all kernels: what each op is told, word by word. Sizes count elements, strides count floats.

Activations are float32 rows, one a token, `stride` floats apart (the width rounded up to ROW_ALIGN). For the
integer kernels the same rows stand once more as int8 in groups of 32 (see `QUANTIZED`).
"""

from __future__ import annotations

from edgellm.kernels.group_sums import ALL_SUMS
from edgellm.kernels.schema import Schema
from edgellm.quants.tiles import TILE_ROWS as TILE_ROWS  # weight rows of a tile, those that prefill unpacks too

ROW_ALIGN = 16  # floats: rows start on a cache line, and a tile may write 16 outputs at once
KV_BLOCK = 64  # tokens in a block of the KV cache
SPAN_TOKENS = 256  # positions whose attention is summed by itself, a multiple of KV_BLOCK
ATTENTION_TILE_ROWS = 6  # query rows that meet a key or value together
F32_TILE_COLS = 256  # columns of a tile of float32: a multiple of every block, and few enough for a first level cache

BATCH = Schema(
    "batch",
    n_tokens="i64",
    token_ids="ptr",  # int32 [n_tokens]
    rows="ptr",  # int64 [n_tokens]: which rows `select_rows` takes
)

# Activations as int8: value = q * d. The sums let a kernel put right what a minimum or a zero point of the weights
# adds, without touching every element again; of these arrays, only those are there that the readers need.
# In two planes, there is a second q behind the first of every token, in steps of a 256th: value = (256 * q1 + q2) * d,
# about as exact as 16 bits. Kernels put both together as integers, so there is one scale and one sum.
QUANTIZED = Schema(
    "quantized",
    q="ptr",  # int8 [n_tokens, n_planes, n_cols]
    d="ptr",  # float32 [n_tokens, n_cols / 32]
    halves="ptr",  # int32 [n_tokens, n_cols / 16]: the sum of each half of a group
    **{sums.field: "ptr" for sums in ALL_SUMS},  # [n_tokens, n_cols / scale_group], see `group_sums`
)
PLANE_BITS = 8  # of the second plane
LEAST_QUANTIZED = 2.0**-121  # a group that holds no more becomes 0: divided by 127, the inverse would be infinite

EMBED = Schema(
    "embed",
    batch=BATCH,
    ids="ptr",  # int32 [n_tokens]: which row of the weights each token takes
    weights="ptr",
    row_bytes="i64",
    n_cols="i64",
    scale="f64",
    out="ptr",
    stride="i64",
)

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

LAYER_NORM = Schema(
    "layer_norm",
    batch=BATCH,
    x="ptr",
    weight="ptr",
    bias="ptr",  # float32 [n_cols], or as many for each group as the weight has
    weight_step="i64",  # from a group's weights to those of the next: n_cols, or 0 where all share them
    out="ptr",
    stride="i64",
    out_stride="i64",
    n_groups="i64",
    n_cols="i64",
    epsilon="f64",
    chunk_tokens="i64",
)

QUANTIZE = Schema(
    "quantize",
    batch=BATCH,
    x="ptr",
    stride="i64",
    n_cols="i64",
    to=QUANTIZED,
    chunk_tokens="i64",
    beside="ptr",  # a NARROW_INT8 record, for kernels that make of the int8 what it says
)

# Of tiles, every line is prefetched: into the first level of cache; there alone; or into the second, and again into the
# first just before its use.
PREFETCHES = ("first_level", "non_temporal", "both_levels")
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
    prefetch="i64",  # of tiles, for one token: one of PREFETCHES
    n_threads="i64",
    next_weights="ptr",  # of the next op that has any; its own where it is the last
    next_step="i64",  # bytes from one of its chunks to the next
    next_chunks="i64",  # how many it has
    next_first="ptr",  # weights that the first thread reads before, by itself; or 0
    scratch="ptr",
    scratch_bytes="i64",  # each thread's own, for the unpacked tile
    beside="ptr",  # a WIDEN_INT8 record, for kernels that add what it says
)

# Of scratch memory in ops/linear_amx.py, before the tile: shapes of registers, and integer sums of two planes.
AMX_CONFIG_BYTES, AMX_SUMS_BYTES = 64, 2 * TILE_ROWS * TILE_ROWS * 4

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

COPY_HEADS = Schema(
    "copy_heads",
    batch=BATCH,
    x="ptr",
    stride="i64",  # of the widest rows, which say how many are a chunk
    x_stride="i64",
    x_step="i64",  # floats from head to head: 0 where all have the same
    x_start="i64",  # of the first that is copied
    out="ptr",
    out_stride="i64",
    out_step="i64",
    out_start="i64",
    size="i64",
    n_heads="i64",
    chunk_tokens="i64",
)

COLUMNS = Schema(
    "columns",
    batch=BATCH,
    x="ptr",
    stride="i64",
    first="i64",  # which column of x is the first
    n_cols="i64",
    out="ptr",
    out_stride="i64",
    out_first="i64",  # which column of out the first becomes
    out_cols="i64",  # so many are cleared before
    chunk_tokens="i64",
)

SCALE = Schema("scale", batch=BATCH, x="ptr", out="ptr", stride="i64", factor="f64", chunk_tokens="i64")

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
    table="ptr",  # where to find the address of float32 [n_positions, 2, n_rot / 2]: cosines, then sines
    positions="ptr",  # int32 [n_tokens]
    chunk_tokens="i64",
)

KV_APPEND = Schema(
    "kv_append",
    batch=BATCH,
    k="ptr",
    k_stride="i64",
    v="ptr",
    v_stride="i64",
    n_heads="i64",
    key_dim="i64",
    value_dim="i64",
    cache="ptr",
    block_bytes="i64",
    key_bytes="i64",  # of a head's keys in a block, scales included
    value_bytes="i64",
    slots="ptr",  # int64 [n_tokens]: block * KV_BLOCK + place in the block
    chunk_tokens="i64",
    scratch="ptr",  # of each thread: a head, float32
    scratch_bytes="i64",
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
    recent_table="ptr",  # the same of the blocks of `recent`, where there are some; the slice then is of one block
    slot="i64",  # where the partial result of the first token goes, of others behind it; -1: this is the whole result
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
    key_dim="i64",
    value_dim="i64",
    scale="f64",
    window="i64",  # positions a token looks back over, itself included
    soft_cap="f64",  # scores s become soft_cap * tanh(s / soft_cap); 0: they stay
    slopes="ptr",  # float32 [heads]: what a score loses for each position of distance; or 0
    sinks="ptr",  # float32 [heads]: a score that takes its share and gives nothing; or 0
    cache="ptr",
    block_bytes="i64",
    key_bytes="i64",  # of a head's keys in a block, scales included
    value_bytes="i64",
    recent="ptr",  # where keys and values of blocks are that are not full, or 0: with the others
    recent_block_bytes="i64",
    recent_key_bytes="i64",
    recent_value_bytes="i64",
    tasks="ptr",
    chunk_heads="i64",  # key-value heads of a chunk: 1, or all of a task
    chunk_count="ptr",  # int64: how many chunks this run has
    n_threads="i64",
    partial="ptr",
    scratch="ptr",
    scratch_bytes="i64",
)


def attention_scratch_bytes(n_rows: int, key_dim: int, value_dim: int) -> int:
    """Of each thread, for slices of n_rows: queries, two results, a span's scores; and a tile's queries or weights."""
    spare = ATTENTION_TILE_ROWS * max(key_dim, KV_BLOCK)
    return 4 * (n_rows * (key_dim + 2 * (value_dim + 2) + SPAN_TOKENS) + spare)


# A token whose attention was split over ranges of positions: partial results first_slot, first_slot + step, ...
MERGE_TASK = Schema("merge_task", token="i64", first_slot="i64", n_slots="i64", step="i64")

ATTENTION_MERGE = Schema(
    "attention_merge",
    batch=BATCH,
    tasks="ptr",
    partial="ptr",
    out="ptr",
    out_stride="i64",
    n_heads="i64",
    value_dim="i64",
    sinks="ptr",  # as those of ATTENTION
    scratch="ptr",
    scratch_bytes="i64",
)

# --- what adapters do to rows (see ops/activate.py, ops/replace_rows.py; also low_rank_records.py) -----------

ACTIVATE = Schema("activate", batch=BATCH, x="ptr", out="ptr", stride="i64", chunk_tokens="i64")

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
    chunk_bytes="i64",  # a multiple of PAGE
    prefetch="i64",  # bytes ahead
    page_lines="i64",  # lines of a page that are asked for: all, those at its start, or none
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
    prefetch_chunks="i64",  # how many there are
    prefetch_first="ptr",  # for the first thread: what it reads by itself, or 0
    prefetch_bytes="i64",  # of each
    first_lines="i64",  # of what the first thread reads by itself in this very op: so many it asks for when that begins
    # Its record and all that this points to, which is prefetched while the op before is done.
    own="ptr",
    own_lines="i64",
)

FUSED_PART = Schema(
    "fused_part",
    kernel="ptr",
    small_kernel="ptr",  # or 0, where another part does this one's work in a small batch
    asking="ptr",  # a kernel that asks memory for what the part will read, in a small batch; or 0
    record="ptr",
)

# A FUSED_PART each; in a small batch, none behind the first n_small_parts has work of its own.
FUSED = Schema("fused", batch=BATCH, parts="ptr", n_parts="i64", n_small_parts="i64")

PROGRAM = Schema(
    "program",
    ops="ptr",  # an OP each
    n_ops="i64",
    n_chunks="ptr",  # int64 [n_ops]: the chunks of this run; an op of 0 chunks is left out
    abort="i64",  # 1: what is left of this run is not done, and its results are worthless
)

MOST_CHUNKS = (1 << 20) - 1  # of an op, for each thread
TEAM = Schema(
    "team",
    generation="i64",  # even: a run is on (or over), the generation / 2-th; odd: the leader is preparing the next
    program="ptr",
    following="ptr",  # a program that is run at once when the one that the leader was called for is done; or 0
    n_chunks="ptr",  # of the ops of the current run: one of `all_n_chunks`
    all_n_chunks="ptr",  # int64 [n_threads + 1, max_ops]
    shares="ptr",  # a cache line for each thread's share of each op, see `kernels.ops.run`
    max_ops="i64",
    seats="ptr",  # a cache line for each thread: which n_chunks it is working with, 0 for none
    n_threads="i64",
    slice_ops="i64",  # after so many ops the leader returns, and is called again to go on
    stop="i64",
    yield_core="ptr",  # the system's function by which a thread lets others have its core
)
