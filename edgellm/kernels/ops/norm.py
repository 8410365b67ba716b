"""Root mean square norm (Zhang and Sennrich, 2019): out = x / sqrt(mean(x**2) + epsilon) * weight."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import RMS_NORM


def build_rms_norm(isa):
    """Each of `n_groups` parts of a token's row by itself (the heads, for query and key norms), one weight for all."""
    op_at = record_viewer(RMS_NORM)
    m = memory(isa)
    load, store, sqrt = m.load_f32, m.store_f32, m.sqrt

    def rms_norm(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for group in range(op.n_groups):
                x = op.x + (token * op.stride + group * op.n_cols) * 4
                out = op.out + (token * op.out_stride + group * op.n_cols) * 4
                squares = np.float32(0)
                for i in range(op.n_cols):
                    squares += load(x + i * 4) * load(x + i * 4)
                scale = np.float32(1.0 / sqrt(np.float64(squares) / op.n_cols + op.epsilon))
                for i in range(op.n_cols):
                    store(out + i * 4, load(x + i * 4) * scale * load(op.weight + i * 4))

    return rms_norm
