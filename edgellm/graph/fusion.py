"""Fused ops: ops that fall into the same pieces become one, which does all of them chunk by chunk.

A norm, its quantization and the like take a fraction of a microsecond for one token, less than it takes two threads to
meet. In a fused op, whoever has a chunk of rows does all of its parts to them, in order, and nobody waits in between.
With many tokens, rows are still in the first level cache when the next part wants them. So it is with columns: who has
multiplied some rows of a linear's weights adds what an adapter has for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgellm.graph.ops import ByRows, Op
from edgellm.kernels import records
from edgellm.kernels.registry import Kernel, find

FUSED: Kernel = find("fused")
FUSED_SMALL: Kernel = find("fused", small=True)


def fused(ops: Sequence[Op]) -> list[Op]:
    """The same work with ops of the same split as one, where no other op has to be done in between."""
    groups: list[list[Op]] = []
    for op in ops:
        group = _group_for(op, groups)
        if group is None:
            groups.append([op])
        else:
            group.append(op)
    return [_fuse(group) for group in groups]


def _group_for(op: Op, groups: list[list[Op]]) -> list[Op] | None:
    """The last group of the same split, if the op can be done so early; nothing passes an op that has no split."""
    for group in reversed(groups):
        if op.split is None or group[0].split is None:
            return None
        if group[0].split == op.split:
            return group
        if any(_conflict(op, other) for other in group):
            return None
    return None


def _conflict(op: Op, other: Op) -> bool:
    """Whether one writes what the other touches."""
    return any(buffer in other.writes for buffer in (*op.reads, *op.writes)) or any(
        buffer in other.reads for buffer in op.writes
    )


def _fuse(ops: list[Op]) -> Op:
    if len(ops) == 1:
        return ops[0]
    first, parts = ops[0], ops
    chunks, split = first.chunks, first.split
    if isinstance(split, ByRows):
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
        small_kernel=FUSED_SMALL if any(op.small_kernel for op in ops) else None,
        split=split,
        parts=parts,
    )
