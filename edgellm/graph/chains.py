"""Chains: neighbouring ops that treat every row by itself become one op, which does all of them chunk by chunk.

A norm, its quantization and the like take a fraction of a microsecond for one token, less than it takes two threads to
meet. In a chain, whoever has a chunk of rows does all its ops to them, in order, and nobody waits in between. With many
tokens, rows are still in the first level cache when the next op wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgellm.graph.ops import Op
from edgellm.kernels import records
from edgellm.kernels.registry import Kernel, find

CHAIN: Kernel = find("chain")


def chained(ops: Sequence[Op]) -> list[Op]:
    """The same work with every run of neighbouring row ops as one op."""
    steps: list[Op] = []
    run: list[Op] = []
    for op in ops:
        if run and not (op.by_rows and op.chunks.count == run[0].chunks.count):
            steps.append(_chain(run))
            run = []
        if op.by_rows:
            run.append(op)
        else:
            steps.append(op)
    return [*steps, _chain(run)] if run else steps


def _chain(ops: list[Op]) -> Op:
    if len(ops) == 1:
        return ops[0]
    # All work on the same rows, so the one with the widest rows says how many are a chunk.
    chunks = min((op.chunks for op in ops), key=lambda chunks: chunks.per_chunk)
    links = [replace(op, fields=op.fields | {"chunk_tokens": chunks.per_chunk}) for op in ops]
    return Op(
        CHAIN,
        records.CHAIN,
        {"n_links": len(links)},
        chunks,
        reads=[buffer for op in ops for buffer in op.reads],
        writes=[buffer for op in ops for buffer in op.writes],
        links=links,
    )
