"""Fused ops: ops that fall into the same pieces become one, which does all of them chunk by chunk.

A norm, its quantization and the like take a fraction of a microsecond for one token, less than it takes two threads to
meet. In a fused op, whoever has a chunk of rows does all of its parts to them, in order, and nobody waits in between.
With many tokens, rows are still in the first level cache when the next part wants them. So it is with columns: who has
multiplied some rows of a linear's weights adds what an adapter has for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgellm.graph.ops import BY_TOKEN, TOGETHER, ByRows, Chunks, Op
from edgellm.kernels import recent_records, records
from edgellm.kernels.registry import Kernel, find

OF_TOKENS = ByRows("tokens")
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
    return by_token([_fuse(group) for group in groups])


def by_token(steps: Sequence[Op]) -> list[Op]:
    """Attention and the row ops around it once more as one op, for batches in which every token is another sequence's.

    No token needs the keys of another one then, so a chunk is all that there is to do to one of them, up to what the
    next linear reads: nobody waits in between, and what a thread has made is still in its caches. A batch is computed
    this way or the other: `Batch.fill` decides, and the ops of the other way have no chunks. Blocks that a token fills
    are not looked at before the next one: their keys are quantized behind it.
    """
    result: list[Op] = []
    rest = list(reversed(steps))
    while rest:
        op = rest.pop()
        if op.schema is not records.ATTENTION:
            result.append(op)
            continue
        full = [result.pop()] if result and result[-1].schema is recent_records.QUANTIZE_KEYS else []
        before = [result.pop()] if result and result[-1].split == OF_TOKENS else []
        merge = rest.pop()
        after = [rest.pop()] if rest and rest[-1].split == OF_TOKENS else []
        whole = replace(op, fields=op.fields | {"chunk_heads": op.fields["n_kv_heads"]})
        # Copies, for each step has records of its own, which lie together in memory.
        parts = [replace(part) for each in (*before, whole, *after) for part in each.parts or [each]]
        result += [
            _fused_op(parts, Chunks(BY_TOKEN)),
            *map(_together, before),
            *full,
            op,
            merge,
            *map(_together, after),
        ]
    return result


def _together(op: Op) -> Op:
    return replace(op, chunks=replace(op.chunks, count=TOGETHER))


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
        (op,) = ops
        return replace(op, chunks=replace(op.chunks, small_batch=0)) if op.is_only_large else op
    chunks = ops[0].chunks
    if isinstance(ops[0].split, ByRows):
        # All work on the same rows, so the one with the widest rows says how many are a chunk.
        chunks = min((op.chunks for op in ops), key=lambda chunks: chunks.per_chunk)
    return replace(_fused_op(ops, chunks), split=ops[0].split)


def _fused_op(ops: list[Op], chunks: Chunks) -> Op:
    return Op(
        FUSED,
        records.FUSED,
        {
            "n_parts": len(ops),
            "n_small_parts": max((i for i, op in enumerate(ops, 1) if not op.is_only_large), default=0),
        },
        chunks,
        reads=[buffer for op in ops for buffer in op.reads],
        writes=[buffer for op in ops for buffer in op.writes],
        small_kernel=FUSED_SMALL if any(op.small_kernel for op in ops) else None,
        parts=[_in_chunks(op, chunks.per_chunk) for op in ops],
    )


def _in_chunks(op: Op, n_tokens: int) -> Op:
    """The same op with chunks of so many rows, if its chunks are rows."""
    if not isinstance(op.split, ByRows) or op.fields.get("chunk_tokens") == n_tokens:
        return op
    return replace(op, fields=op.fields | {"chunk_tokens": n_tokens})
