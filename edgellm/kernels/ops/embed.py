"""Embeddings of tokens or positions: rows of a weight matrix, dequantized and scaled."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.dequantize import dequantize_row
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import EMBED
from edgellm.kernels.staged import staged


def build_embed(isa, fmt):
    """Chunk c is token c of the batch."""
    op_at = record_viewer(EMBED)
    load_i32 = memory(isa).load_i32

    @staged(isa, "void", "i64", "i64", "f32", "i64")
    def embed_row(v, row, n_cols, scale, out):
        dequantize_row(v, fmt, row, n_cols, lambda column, weights: v.store(out + column * 4, weights * scale))

    def embed(record, chunk, thread):
        op = op_at(record)
        row = op.weights + load_i32(op.ids + chunk * 4) * op.row_bytes
        embed_row(row, op.n_cols, np.float32(op.scale), op.out + chunk * op.stride * 4)

    return embed
