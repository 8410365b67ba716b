"""A row of weights as float32, in the order of its columns; each weight is what `fmt.decode` says, to the bit."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.blocks import BlockReader
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import Value, Vocabulary
from edgellm.quants.floats import FloatFormat

GROUP = 32  # weights that are unpacked together
HALF = GROUP // 2

Put = Callable[[Value, Value], None]


def dequantize_row(v: Vocabulary, fmt, row: Value, n_cols: Value, put: Put) -> None:
    """put(column, weights) for all columns of the row at an address, some neighbours at a time."""
    (_floats if isinstance(fmt, FloatFormat) else _blocks)(v, fmt, row, n_cols, put)


def _floats(v: Vocabulary, fmt, row: Value, n_cols: Value, put: Put) -> None:
    v.elements(n_cols, ROW_ALIGN, lambda i, lanes: put(i, fmt.load(v, row + i * fmt.block_bytes, lanes)))


def _blocks(v: Vocabulary, fmt, row: Value, n_cols: Value, put: Put) -> None:
    def block(i: Value) -> None:
        reader = BlockReader(v, [row + i * fmt.block_bytes], fmt.block_bytes)
        scales, biases = fmt.unpack_scales(v, reader)
        for g in range(fmt.block_size // GROUP):
            u = fmt.unpack(v, reader, g)
            for start in (0, HALF):
                scale = (g * GROUP + start) // fmt.scale_group
                weights = (u[start : start + HALF].u_to_f32() - float(fmt.zero)) * scales[scale]
                if biases is not None:
                    weights = weights + biases[scale]
                put(i * fmt.block_size + (g * GROUP + start), weights)

    v.repeat(n_cols / fmt.block_size, block)
