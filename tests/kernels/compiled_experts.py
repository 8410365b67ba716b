"""The compiled kernels of mixtures of experts behind the signatures of their NumPy twins (see `compiled.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.kernels import expert_records as records
from edgellm.kernels.group_sums import sums_for
from edgellm.kernels.records import QUANTIZED
from edgellm.kernels.reference import Quantized
from edgellm.quants import BlockFormat
from edgellm.quants.tiles import to_tiles

from .compiled import Compiled, Output, Scratch, _record, before_a_wall, into, rows

FOR_FEW = ("experts_decode", "experts_tiles", "experts_f32_decode")


def route(compiled: Compiled, logits: np.ndarray, bias: np.ndarray | None, n_used: int, scoring: str = "softmax",
          normalize: bool = True, scale: float = 1.0, n_groups: int = 1, n_groups_used: int = 1,
          n_ranked: int = 1, scales: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    n_tokens, n_experts = logits.shape
    chosen, weights = Output(n_tokens, n_used), Output(n_tokens, n_used)
    scratch, padded = Scratch(records.route_scratch_bytes(n_experts, n_groups)), rows(logits)
    compiled._run(
        "route", records.ROUTE, -(-n_tokens // 2), n_tokens, options={"scoring": scoring},
        logits=padded, stride=padded.shape[1], n_experts=n_experts, bias=0 if bias is None else bias,
        n_groups=n_groups, n_groups_used=n_groups_used, n_ranked=n_ranked, n_used=n_used, normalize=int(normalize),
        scale=scale, scales=0 if scales is None else scales, chosen=chosen, weights=weights, out_stride=chosen.stride,
        chunk_tokens=2, scratch=scratch, scratch_bytes=scratch.n_bytes,
    )  # fmt: skip
    scratch.check()
    return chosen.take().astype(int), weights.take()


def sort_experts(compiled: Compiled, chosen: np.ndarray, n_experts: int) -> tuple[np.ndarray, np.ndarray]:
    order, ends, padded = np.full(chosen.size + 1, -7), np.full(n_experts + 1, -7), rows(chosen.astype(np.float32))
    compiled._run(
        "sort_experts", records.SORT_EXPERTS, 1, len(chosen), n_experts=n_experts, n_used=chosen.shape[1],
        chosen=padded, chosen_stride=padded.shape[1], order=order, ends=ends,
    )  # fmt: skip
    assert order[-1] == ends[-1] == -7
    return order[:-1], ends[:-1]


def experts(compiled: Compiled, op: str, weights: np.ndarray, fmt: BlockFormat, x: Quantized | np.ndarray,
            chosen: np.ndarray, chunk_rows: int = 16) -> np.ndarray:  # fmt: skip
    """op is one of the kernels of experts; those that read tiles find the weights put into such."""
    (n_tokens, n_used), (n_experts, n_rows, row_bytes) = chosen.shape, weights.shape
    n_cols = row_bytes // fmt.block_bytes * fmt.block_size
    source = x if isinstance(x, np.ndarray) else x.q
    x_parts, isa = len(source) // n_tokens, compiled.store.isa
    fields: dict[str, Any] = {}
    if isinstance(x, Quantized):
        kind = sums_for(fmt)
        sums = x.sums(kind)
        fields["xq"] = _record(QUANTIZED, **x._asdict(), **{kind.field: sums})
        scratch = Scratch(records.experts_scratch_bytes(n_cols, n_cols // fmt.scale_group, isa.tile_tokens))
    else:
        fields["x"] = rows(x.reshape(n_tokens, -1))
        fields["x_stride"] = fields["x"].shape[1]
        scratch = Scratch(records.experts_f32_scratch_bytes(n_cols, isa.n_registers))
    order, ends = sort_experts(compiled, chosen, n_experts)
    memory = to_tiles(fmt, weights.reshape(-1, row_bytes)) if op.startswith("experts_tiles") else weights
    out, chosen_rows = Output(n_tokens, n_used * n_rows), rows(chosen.astype(np.float32))
    chunks_of = -(-n_rows // chunk_rows)
    compiled._run(
        op, records.EXPERTS, chunks_of * (n_tokens * n_used if op in FOR_FEW else n_experts), n_tokens, fmt,
        weights=before_a_wall(memory), expert_bytes=n_rows * row_bytes, row_bytes=row_bytes, n_rows=n_rows,
        n_cols=n_cols, n_experts=n_experts, n_used=n_used, chosen=chosen_rows, chosen_stride=chosen_rows.shape[1],
        order=order, ends=ends, x_parts=x_parts, out=out, out_stride=out.stride, chunk_rows=chunk_rows,
        chunks_of=chunks_of, small_chunk_rows=chunk_rows, small_chunks_of=chunks_of, prefetch_distance=1 << 12,
        n_threads=2, scratch=scratch, scratch_bytes=scratch.n_bytes, **fields,
    )  # fmt: skip
    scratch.check()
    return out.take()


def add_expert_bias(compiled: Compiled, x: np.ndarray, bias: np.ndarray, chosen: np.ndarray,
                    in_place: bool = False) -> np.ndarray:  # fmt: skip
    chosen_rows = rows(chosen.astype(np.float32))
    with into(x, in_place) as (source, out):
        compiled._run(
            "add_expert_bias", records.ADD_EXPERT_BIAS, -(-len(x) // 2), len(x), x=source, out=out, stride=out.stride,
            n_cols=bias.shape[1], bias=before_a_wall(bias.view(np.uint8)), n_experts=len(bias),
            n_used=chosen.shape[1], chosen=chosen_rows, chosen_stride=chosen_rows.shape[1], chunk_tokens=2,
        )  # fmt: skip
    return out.take()


def sum_experts(compiled: Compiled, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    n_tokens, n_used = weights.shape
    out, source, padded = Output(n_tokens, x.shape[1] // n_used), rows(x), rows(weights)
    compiled._run(
        "sum_experts", records.SUM_EXPERTS, -(-n_tokens // 2), n_tokens, x=source, stride=source.shape[1],
        weights=padded, weights_stride=padded.shape[1], n_used=n_used, n_cols=out.width, out=out,
        out_stride=out.stride, chunk_tokens=2,
    )  # fmt: skip
    return out.take()


def gate(compiled: Compiled, x: np.ndarray, by: np.ndarray, in_place: bool = False) -> np.ndarray:
    padded = rows(by)
    with into(x, in_place) as (source, out):
        compiled._run(
            "gate", records.GATE, -(-len(x) // 2), len(x), x=source, out=out, stride=out.stride, n_cols=x.shape[1],
            gate=padded, gate_stride=padded.shape[1], is_one=int(by.shape[1] == 1), chunk_tokens=2,
        )  # fmt: skip
    return out.take()
