"""What an op must do at least: bytes to read, products to make. Taken from what its record says."""

from __future__ import annotations

from edgellm.graph.ops import Op
from edgellm.kernels import low_rank_records, records
from edgellm.kernels.expert_records import EXPERTS
from edgellm.kernels.records import KV_BLOCK

LOW_RANK = (
    *(low_rank_records.NARROW, low_rank_records.NARROW_INT8),
    *(low_rank_records.WIDEN, low_rank_records.WIDEN_INT8),
)
MATRICES = (records.LINEAR, EXPERTS)


def weight_bytes(op: Op) -> int:
    """Bytes of the matrices that an op reads, once for a whole batch.

    Of experts, those of one token: tokens that have others need more.
    """
    if op.parts:
        return sum(map(weight_bytes, op.parts))
    if op.schema in LOW_RANK:
        return int(op.fields["weight"].n_bytes)
    return _matrices(op) * op.fields["n_rows"] * op.fields["row_bytes"] if op.schema in MATRICES else 0


def weight_macs(op: Op) -> int:
    """Products with weights that an op adds up for each token."""
    if op.parts:
        return sum(map(weight_macs, op.parts))
    if op.schema in LOW_RANK:
        return op.fields["rank"] * op.fields["n_cols"]
    return _matrices(op) * op.fields["n_rows"] * op.fields["n_cols"] if op.schema in MATRICES else 0


def _matrices(op: Op) -> int:
    """How many a token meets: of experts, those it has."""
    return int(op.fields.get("n_used", 1))


def cache_bytes(op: Op, position: int) -> int:
    """Bytes of keys and values that attention reads for the token at a position; 0 for other ops."""
    if op.parts:
        return sum(cache_bytes(part, position) for part in op.parts)
    if op.schema is not records.ATTENTION:
        return 0
    of_head = op.fields["key_bytes"] + op.fields["value_bytes"]
    return min(position + 1, op.fields["window"]) * (op.fields["n_kv_heads"] * of_head // KV_BLOCK)
