"""Choosing the scales of blocks: what `edgellm.quants.fit` does in NumPy, in the same float32 operations.

A lane is a block. A tile of as many blocks as a register has lanes is first transposed, so that one register holds the
same position of all of them; from there on every sum runs over registers, and none across lanes. Sums are made in the
order of the NumPy twin and without fused multiplies, so both choose the same scales to the last bit.
"""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.fit_lines import fit_lines
from edgellm.kernels.ops.fit_scales import fit_scales
from edgellm.kernels.ops.fit_tile import Tile
from edgellm.kernels.records import FIT
from edgellm.kernels.staged import staged
from edgellm.quants.grids import Scales


def build_fit(isa, fmt):
    """Chunk c is the c-th chunk_blocks of the blocks."""
    op_at = record_viewer(FIT)
    lanes = isa.lanes

    def tile(weighted: bool):
        @staged(isa, "void", *["i64"] * 12)
        def fit_tile(v, x, importance, first, last, targets, n_targets, d, m, scale, minimum, q, scratch):
            t = Tile(v, fmt, x, importance if weighted else None, first, last, scratch)
            find = fit_scales if isinstance(fmt.grid, Scales) else fit_lines
            found = find(t, fmt.grid, targets, n_targets)
            t.store(found, d, m, scale, minimum, q)

        return fit_tile

    plain, weighted = tile(False), tile(True)

    def fit(record, chunk, thread):
        op = op_at(record)
        scratch = op.scratch + thread * op.scratch_bytes
        end = min((chunk + 1) * op.chunk_blocks, op.n_blocks)
        for first in range(chunk * op.chunk_blocks, end, lanes):
            if op.importance == 0:
                plain(
                    op.x, 0, first, end - 1, op.targets, op.n_targets, op.d, op.m, op.scale, op.minimum, op.q, scratch
                )
            else:
                weighted(op.x, op.importance, first, end - 1, op.targets, op.n_targets, op.d, op.m, op.scale,
                         op.minimum, op.q, scratch)  # fmt: skip

    return fit
