"""Fused ops: neighbouring ops that treat every row by itself become one, which does all of them chunk by chunk.

A norm, its quantization and the like take a fraction of a microsecond for one token, less than it takes two threads to
meet. In a fused op, whoever has a chunk of rows does all of its parts to them, in order, and nobody waits in between.
With many tokens, rows are still in the first level cache when the next part wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgellm.graph.ops import Op
from edgellm.kernels import records
from edgellm.kernels.registry import Kernel, find

FUSED: Kernel = find("fused")


def fused(ops: Sequence[Op]) -> list[Op]:
    """The same work with every run of neighbouring row ops as one op."""
    result: list[Op] = []
    run: list[Op] = []
    for op in ops:
        if run and not (op.by_rows and op.chunks.count == run[0].chunks.count):
            result.append(_fuse(run))
            run = []
        if op.by_rows:
            run.append(op)
        else:
            result.append(op)
    return [*result, _fuse(run)] if run else result


def _fuse(ops: list[Op]) -> Op:
    if len(ops) == 1:
        return ops[0]
    # All work on the same rows, so the one with the widest rows says how many are a chunk.
    chunks = min((op.chunks for op in ops), key=lambda chunks: chunks.per_chunk)
    parts = [replace(op, fields=op.fields | {"chunk_tokens": chunks.per_chunk}) for op in ops]
    return Op(
        FUSED,
        records.FUSED,
        {"n_parts": len(parts)},
        chunks,
        reads=[buffer for op in ops for buffer in op.reads],
        writes=[buffer for op in ops for buffer in op.writes],
        parts=parts,
    )
