"""Several ops on the same rows, one after the other (see `graph.chains`)."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import call_kernel
from edgellm.kernels.records import CHAIN, LINK
from edgellm.kernels.staged import staged


def build_chain(isa):
    """Chunk c is chunk c of every link."""
    op_at, link_at = record_viewer(CHAIN), record_viewer(LINK)
    link_bytes = LINK.dtype.itemsize
    call = staged(isa, "void", *["i64"] * 4)(call_kernel)

    def chain(record, chunk, thread):
        op = op_at(record)
        for index in range(op.n_links):
            link = link_at(op.links + index * link_bytes)
            call(link.kernel, link.record, chunk, thread)

    return chain
