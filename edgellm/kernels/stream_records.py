"""The records of what models with several streams of hidden states need beside (see `ops/streams.py`)."""

from __future__ import annotations

from edgellm.kernels.records import BATCH
from edgellm.kernels.schema import Schema

ADD_MIXED = Schema(
    "add_mixed",
    batch=BATCH,
    x="ptr",  # n_out parts of n_cols
    stride="i64",
    y="ptr",  # n_in parts of n_cols
    y_stride="i64",
    weights="ptr",  # float32 [n_tokens, n_out, n_in]
    weights_stride="i64",
    plus="f64",  # what is added to each weight
    n_cols="i64",
    n_out="i64",
    n_in="i64",
    out="ptr",  # may be x
    chunk_tokens="i64",
)

ADD_TO_COLUMNS = Schema(
    "add_to_columns",
    batch=BATCH,
    x="ptr",
    stride="i64",
    y="ptr",
    y_stride="i64",
    n_cols="i64",  # of y
    first="i64",  # column of x that its first is added to; and the next n_cols, and the next, ...
    times="i64",
    out="ptr",  # may be x
    chunk_tokens="i64",
)

MATCH_SIZE = Schema(
    "match_size",
    batch=BATCH,
    x="ptr",
    like="ptr",
    stride="i64",
    n_cols="i64",
    least="f64",  # what the mean square of x counts as, at least
    out="ptr",  # may be x
    chunk_tokens="i64",
)

KEEP_LARGE = Schema(
    "keep_large",
    batch=BATCH,
    x="ptr",
    stride="i64",
    n_cols="i64",
    deviations="f64",
    out="ptr",  # may be x
    chunk_tokens="i64",
)
