"""Weights for tests: blocks of random bytes, so that every code and every scale occurs."""

from __future__ import annotations

import numpy as np

from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat

FLOATS = [fmt for fmt in FORMATS.values() if isinstance(fmt, FloatFormat)]
BLOCKS = [fmt for fmt in FORMATS.values() if fmt not in FLOATS]


def random_weights(fmt: BlockFormat, n_rows: int, n_cols: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [n_rows, row_bytes]: any bits, but for float16 scales, which are of an ordinary size."""
    if isinstance(fmt, FloatFormat):
        return fmt.quantize(rng.standard_normal((n_rows, n_cols), np.float32))
    raw = rng.integers(0, 256, (n_rows, fmt.row_bytes(n_cols)), np.uint8)
    blocks = raw.reshape(-1).view(fmt.layout)
    for name in half_fields(fmt):
        blocks[name] = rng.standard_normal(blocks[name].shape) / 64
    if fmt.name == "MXFP4":
        blocks["e"] = rng.integers(118, 132, len(blocks))
    return raw


def half_fields(fmt: BlockFormat) -> list[str]:
    """The float16 fields of a block."""
    return [name for name in fmt.layout.names or () if fmt.layout[name] == np.float16]
