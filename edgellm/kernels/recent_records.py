"""Records of the op that stores the keys of full blocks (see `kv_types.ChannelKeys` and `ops/quantize_keys.py`)."""

from __future__ import annotations

from edgellm.kernels.records import BATCH
from edgellm.kernels.schema import Schema

# Keys of a block that is full now, to be stored channel by channel: which block of `recent`, and which of `cache`.
FULL_BLOCK_TASK = Schema("full_block_task", recent="i64", block="i64")

QUANTIZE_KEYS = Schema(
    "quantize_keys",
    batch=BATCH,
    n_heads="i64",
    key_dim="i64",
    cache="ptr",
    block_bytes="i64",
    key_bytes="i64",
    recent="ptr",
    recent_block_bytes="i64",
    recent_key_bytes="i64",
    tasks="ptr",
)
