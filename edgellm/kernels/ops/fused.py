"""A fused op: several ops on the same rows, one after the other (see `graph.fusion`)."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import call_kernel
from edgellm.kernels.records import FUSED, FUSED_PART
from edgellm.kernels.staged import staged


def build_fused(isa, small=False):
    """Chunk c is chunk c of every part."""
    op_at, part_at = record_viewer(FUSED), record_viewer(FUSED_PART)
    part_bytes = FUSED_PART.dtype.itemsize
    call = staged(isa, "void", *["i64"] * 4)(call_kernel)

    def fused(record, chunk, thread):
        op = op_at(record)
        n_parts = op.n_small_parts if small else op.n_parts
        for index in range(n_parts if small else 0):
            part = part_at(op.parts + index * part_bytes)
            if part.asking != 0:
                call(part.asking, part.record, chunk, thread)
        for index in range(n_parts):
            part = part_at(op.parts + index * part_bytes)
            kernel = part.small_kernel if small else part.kernel
            if kernel != 0:
                call(kernel, part.record, chunk, thread)

    return fused
