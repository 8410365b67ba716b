"""The records of low-rank steps beside those of a model, which adapters put there; see ops/low_rank.py."""

from __future__ import annotations

from edgellm.kernels.records import BATCH, QUANTIZED
from edgellm.kernels.schema import Schema

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
    chunk_rank="i64",  # rows of the weight that are a chunk in a small batch, for all tokens: a multiple of 4
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
    # A chunk is so many columns of so many tokens, a token's chunks one after the other.
    chunk_tokens="i64",
    chunk_cols="i64",
    small_chunk_cols="i64",  # in a small batch
)

# The same beside quantized weights, with A and B in int8; see ops/low_rank_int8.py and quants/low_rank.py.
#
# h of a token is int16 with one scale, a float32 at the beginning of its row. Numbers are float32 in the same place
# before they are rounded, so rows have room for those. Of a small rank, all that is read is on one cache line.
NARROWED_AT = 16  # bytes before the numbers
LARGEST_NARROWED = 8191.0
LEAST_NARROWED = 2.0**-114  # a row that holds no more becomes 0, as with LEAST_QUANTIZED
MOST_RANK = 2048  # of larger ones, sums of products with int8 might not fit into 32 bits

NARROW_INT8 = Schema(
    "narrow_int8",
    batch=BATCH,
    xq=QUANTIZED,  # in one plane
    stride="i64",
    n_cols="i64",
    weight="ptr",  # A, as `pack_a` packs it
    n_pieces="i64",
    piece_bytes="i64",
    rank="i64",
    scale="f64",
    scales="ptr",  # float32 [n_tokens], or 0: a row that counts 0 is not computed
    out="ptr",
    out_stride="i64",
    chunk_tokens="i64",
    next="ptr",  # the record of another one of the same x, for kernels that make all of them; or 0
)

WIDEN_INT8 = Schema(
    "widen_int8",
    batch=BATCH,
    y="ptr",
    out="ptr",  # may be y
    stride="i64",
    n_cols="i64",
    h="ptr",
    h_stride="i64",
    weight="ptr",  # B, as `pack_b` packs it
    n_pieces="i64",
    tile_bytes="i64",
    rank="i64",
    scale="f64",
    scales="ptr",  # float32 [n_tokens], or 0: how much of it each row takes
    # As in WIDEN, and all columns are multiples of 16.
    chunk_tokens="i64",
    chunk_cols="i64",
    small_chunk_cols="i64",
)

ADD_SCALED = Schema(
    "add_scaled",
    batch=BATCH,
    y="ptr",
    out="ptr",  # may be y
    stride="i64",
    n_cols="i64",
    x="ptr",
    x_stride="i64",
    scale="f64",
    scales="ptr",  # float32 [n_tokens], or 0: how much of x each row takes
    chunk_tokens="i64",
)

MULTIPLY_COLUMNS = Schema(
    "multiply_columns", batch=BATCH, x="ptr", weight="ptr", out="ptr", n_cols="i64", stride="i64", chunk_tokens="i64"
)
