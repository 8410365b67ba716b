"""Rotary position embeddings (Su et al., 2021): pairs of a head's dimensions turned by the token's position."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ROPE


def build_rope(isa):
    """In place. A pair is (2i, 2i + 1) or, as most Hugging Face models have it, (i, i + n_rot / 2)."""
    op_at = record_viewer(ROPE)
    m = memory(isa)
    load, store = m.load_f32, m.store_f32

    def rope(record, chunk, thread):
        op = op_at(record)
        half = op.n_rot // 2
        lane_step = 2 if op.pair_step == 1 else 1
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            cosines = op.table + token * op.n_rot * 4
            sines = cosines + half * 4
            for head in range(op.n_heads):
                x = op.x + (token * op.stride + head * op.head_dim) * 4
                for i in range(half):
                    first = x + i * lane_step * 4
                    second = first + op.pair_step * 4
                    a, b = load(first), load(second)
                    c, s = load(cosines + i * 4), load(sines + i * 4)
                    store(first, a * c - b * s)
                    store(second, a * s + b * c)

    return rope
