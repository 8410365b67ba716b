"""The records of layers that keep a state of a text from one token to the next (see `ops/recurrent.py`).

A state lies in one of many slots. The tokens of a text in a batch are gone through in tasks, one after the other: each
goes from the state in one slot to that in another, so what was there before stays as it was.
"""

from __future__ import annotations

from edgellm.kernels.records import BATCH
from edgellm.kernels.schema import Schema

CONV_COLS = 256  # columns of a convolution that a thread takes at a time
STATE_COLS = 64  # columns of a state that stay in the first level cache, for all tokens of a task

# A text of the batch, and its tasks, in order.
STATE_TEXT = Schema("state_text", first_task="i64", n_tasks="i64")

STATE_TASK = Schema(
    "state_task",
    token="i64",  # first token of the task in the batch
    n_tokens="i64",
    source="i64",  # the slot of the state before that token, or -1: there is nothing before it
    target="i64",  # the slot of the state after the last token; never the source
)

CAUSAL_CONV = Schema(
    "causal_conv",
    batch=BATCH,
    texts="ptr",
    tasks="ptr",
    states="ptr",  # in each slot, float32 [n_taps - 1, n_cols]: the last inputs, the oldest first
    state_bytes="i64",  # from one slot to the next
    x="ptr",
    stride="i64",
    weight="ptr",  # float32 [n_taps, n_cols]: the last tap is that of the token itself
    n_taps="i64",
    n_cols="i64",
    out="ptr",
    n_parts="i64",  # pieces of CONV_COLS columns: as many chunks for each text
)

DELTA_RULE = Schema(
    "delta_rule",
    batch=BATCH,
    texts="ptr",
    tasks="ptr",
    # In each slot, float32 of every head: blocks of STATE_COLS columns, [key_dim, STATE_COLS], as many as there are,
    # and then of ROW_ALIGN columns.
    states="ptr",
    state_bytes="i64",
    x="ptr",  # queries and keys, [n_key_heads, key_dim] both, and values [n_heads, value_dim]
    stride="i64",
    decay="ptr",  # float32 [n_tokens, n_heads]
    decay_stride="i64",
    beta="ptr",
    beta_stride="i64",
    rate="ptr",  # float32 [n_heads]
    bias="ptr",  # float32 [n_heads]
    n_key_heads="i64",
    n_neighbours="i64",  # heads of values that go with a head of keys before the next ones go with the next
    n_heads="i64",
    key_dim="i64",
    value_dim="i64",
    epsilon="f64",
    scale="f64",  # what queries of length 1 are multiplied by
    out="ptr",  # [n_heads, value_dim]
    out_stride="i64",
    scratch="ptr",  # of each thread, 2 * key_dim floats
    scratch_bytes="i64",
)
