"""The records of what encoders have beside decoders: whole texts that see all of themselves. See `records`."""

from __future__ import annotations

from edgellm.kernels.records import BATCH
from edgellm.kernels.schema import Schema

ADD_SEGMENT = Schema(
    "add_segment",
    batch=BATCH,
    x="ptr",
    table="ptr",  # float32 [2, n_cols]
    segments="ptr",  # int32 [n_tokens]: which part of a pair of texts each belongs to, 0 or 1
    out="ptr",  # may be x
    n_cols="i64",
    stride="i64",
    chunk_tokens="i64",
)

# Some queries of a text that stands in consecutive rows of the batch and sees nothing but itself.
TEXT_TASK = Schema(
    "text_task",
    token="i64",  # the text's first row
    n_tokens="i64",  # of the text
    first="i64",  # of its queries
    n_queries="i64",
)
QUERY_TILE = 32  # queries whose scores are computed together
TEXT_QUERIES = 2 * QUERY_TILE  # of a task

TEXT_ATTENTION = Schema(
    "text_attention",
    batch=BATCH,
    q="ptr",
    q_stride="i64",
    k="ptr",
    k_stride="i64",
    v="ptr",
    v_stride="i64",
    out="ptr",
    out_stride="i64",
    n_heads="i64",
    group="i64",
    key_dim="i64",
    value_dim="i64",
    scale="f64",
    window="i64",  # positions a token looks back over, itself included
    ahead="i64",  # positions after its own that it sees
    slopes="ptr",  # float32 [n_heads]: what a score loses for each position of distance, where there is such a bias
    tasks="ptr",  # a TEXT_TASK each
    scratch="ptr",
    scratch_bytes="i64",
)


def text_attention_scratch_bytes(longest: int, key_dim: int) -> int:
    """Of each thread, for texts up to `longest` tokens: a tile of queries turned, their scores, and their sums."""
    return 4 * QUERY_TILE * (key_dim + longest + 1)
