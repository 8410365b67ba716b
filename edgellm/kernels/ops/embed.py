"""Token embeddings: rows of a weight matrix, dequantized and scaled."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.blocks import BlockReader
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import EMBED
from edgellm.kernels.staged import Value, Vocabulary, staged
from edgellm.quants.floats import FloatFormat


def _dequantize_blocks(v: Vocabulary, fmt, row: Value, n_cols: Value, scale: Value, out: Value) -> None:
    def body(i: Value) -> list[Value]:
        block = BlockReader(v, [row + i * fmt.block_bytes])
        scales, biases = fmt.unpack_scales(v, block)
        for g in range(fmt.block_size // 32):
            u = fmt.unpack(v, block, g)
            for half in range(2):
                s = (2 * g + half) * 16 // fmt.scale_group
                weights = (u[16 * half : 16 * half + 16].u_to_f32() - float(fmt.zero)) * scales[s]
                if biases is not None:
                    weights = weights + biases[s]
                v.store(out + i * (fmt.block_size * 4) + (2 * g + half) * 64, weights * scale)
        return []

    v.loop(n_cols / fmt.block_size, [], body)


def _convert_floats(v: Vocabulary, fmt, row: Value, n_cols: Value, scale: Value, out: Value) -> None:
    def body(i: Value) -> list[Value]:
        v.store(out + i * 4, fmt.load(v, row + i * fmt.block_bytes, 1) * scale)
        return []

    v.loop(n_cols, [], body)


def build_embed(isa, fmt):
    """Chunk c is token c of the batch."""
    op_at = record_viewer(EMBED)
    load_i32 = memory(isa).load_i32
    dequantize = _convert_floats if isinstance(fmt, FloatFormat) else _dequantize_blocks

    @staged(isa, "void", "i64", "i64", "f32", "i64")
    def dequantize_row(v, row, n_cols, scale, out):
        dequantize(v, fmt, row, n_cols, scale, out)

    def embed(record, chunk, thread):
        op = op_at(record)
        row = op.weights + load_i32(op.batch.token_ids + chunk * 4) * op.row_bytes
        dequantize_row(row, op.n_cols, np.float32(op.scale), op.out + chunk * op.stride * 4)

    return embed
