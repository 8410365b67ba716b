"""Compiled kernels of encoders behind the signatures of their NumPy twins (`edgellm.kernels.reference_encoder`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.kernels import encoder_records
from edgellm.kernels.encoder_records import TEXT_QUERIES

from .compiled import Compiled, Output, Scratch, _table, into, rows
from .compiled_rows import walled

CHUNK_TOKENS = 2
NO_LIMIT = 1 << 40


class CompiledEncoder:
    """The kernels of encoders, of an instruction set."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled

    def add_segment(self, x: np.ndarray, table: np.ndarray, segments: np.ndarray, in_place: bool = False) -> np.ndarray:
        numbers = segments.astype(np.int32)
        with into(x, in_place) as (source, out):
            self.compiled._run(
                "add_segment",
                encoder_records.ADD_SEGMENT,
                -(-len(x) // CHUNK_TOKENS),
                len(x),
                x=source,
                table=walled(table),
                segments=numbers,
                out=out,
                n_cols=x.shape[1],
                stride=out.stride,
                chunk_tokens=CHUNK_TOKENS,
            )
        return out.take()

    def text_attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        lengths: Sequence[int],
        scale: float,
        window: int | None = None,
        ahead: int | None = None,
        slopes: np.ndarray | None = None,
    ) -> np.ndarray:
        (n_tokens, n_heads, key_dim), value_dim = q.shape, v.shape[2]
        tasks, token = [], 0
        for length in lengths:
            starts = range(0, length, TEXT_QUERIES)
            tasks += [(token, length, first, min(TEXT_QUERIES, length - first)) for first in starts]
            token += length
        q_rows, k_rows, v_rows = rows(q), rows(k), rows(v)
        out = Output(n_tokens, n_heads * value_dim)
        scratch = Scratch(encoder_records.text_attention_scratch_bytes(max(lengths), key_dim))
        self.compiled._run(
            "text_attention",
            encoder_records.TEXT_ATTENTION,
            len(tasks) * n_heads,
            n_tokens,
            options={"alibi": slopes is not None},
            q=q_rows,
            q_stride=q_rows.shape[1],
            k=k_rows,
            k_stride=k_rows.shape[1],
            v=v_rows,
            v_stride=v_rows.shape[1],
            out=out,
            out_stride=out.stride,
            n_heads=n_heads,
            group=n_heads // k.shape[1],
            key_dim=key_dim,
            value_dim=value_dim,
            scale=scale,
            window=window or NO_LIMIT,
            ahead=NO_LIMIT if ahead is None else ahead,
            slopes=0 if slopes is None else walled(slopes),
            tasks=_table(encoder_records.TEXT_TASK, tasks),
            scratch=scratch,
            scratch_bytes=scratch.n_bytes,
        )
        scratch.check()
        return out.take().reshape(n_tokens, n_heads, value_dim)
