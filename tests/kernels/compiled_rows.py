"""Compiled kernels behind the signatures of their NumPy twins in `edgellm.kernels.reference_rows`."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.kernels import gradient_records, low_rank_records, records
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.schema import Schema
from edgellm.quants import FORMATS, BlockFormat

from .compiled import SENTINEL, Compiled, Output, before_a_wall, into, rows

CHUNK_TOKENS = 2
N_THREADS = 3  # whose shares of a narrow matrix are chunks
FLOATS = {np.dtype(np.float32): FORMATS["F32"], np.dtype(np.float16): FORMATS["F16"]}


def walled(x: np.ndarray) -> np.ndarray:
    """A small weight, which ends where nobody may read."""
    return before_a_wall(np.ascontiguousarray(x).view(np.uint8))


class CompiledRows:
    """The row kernels of training, of an instruction set."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled

    def _by_rows(
        self,
        op: str,
        schema: Schema,
        n_tokens: int,
        options: dict[str, Any] | None = None,
        fmt: BlockFormat | None = None,
        n_parts: int = 1,
        **fields: Any,
    ) -> None:
        """n_parts: chunks for every CHUNK_TOKENS tokens."""
        n_chunks = -(-n_tokens // CHUNK_TOKENS) * n_parts
        self.compiled._run(op, schema, n_chunks, n_tokens, fmt, options=options, chunk_tokens=CHUNK_TOKENS, **fields)

    def layer_norm(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float, n_groups: int = 1
    ) -> np.ndarray:
        source, out, n_cols = rows(x), Output(*x.shape), x.shape[1] // n_groups
        self._by_rows(
            "layer_norm",
            records.LAYER_NORM,
            len(x),
            x=source,
            stride=source.shape[1],
            weight=walled(weight),
            bias=walled(bias),
            weight_step=n_cols if weight.ndim == 2 else 0,
            out=out,
            out_stride=out.stride,
            n_groups=n_groups,
            n_cols=n_cols,
            epsilon=epsilon,
        )
        return out.take()

    def by_factor(self, op: str, x: np.ndarray, factor: float, in_place: bool) -> np.ndarray:
        """op: "scale" or "soft_cap"."""
        with into(x, in_place) as (source, out):
            self._by_rows(op, records.SCALE, len(x), x=source, out=out, stride=out.stride, factor=factor)
        return out.take()

    def columns(self, x: np.ndarray, first: int, n_cols: int, out_first: int = 0, out_cols: int = 0) -> np.ndarray:
        source, out = rows(x), Output(len(x), out_cols or n_cols)
        self._by_rows(
            "columns",
            records.COLUMNS,
            len(x),
            x=source,
            stride=source.shape[1],
            first=first,
            n_cols=n_cols,
            out=out,
            out_stride=out.stride,
            out_first=out_first,
            out_cols=out_cols,
        )
        return out.take()

    def narrow(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        scale: float = 1.0,
        scales: np.ndarray | None = None,
        chunk_rank: int | None = None,
    ) -> np.ndarray:
        """chunk_rank: how many rows of the weight are a chunk, as in a small batch; else tokens are."""
        source, (rank, n_cols) = rows(x), weight.shape
        out = Output(len(x), rank)
        is_small = chunk_rank is not None
        self.compiled._run(
            "narrow",
            low_rank_records.NARROW,
            N_THREADS if is_small else -(-len(x) // CHUNK_TOKENS),
            len(x),
            FLOATS[weight.dtype],
            options={"small": is_small},
            chunk_tokens=CHUNK_TOKENS,
            chunk_rank=chunk_rank or 0,
            x=source,
            stride=source.shape[1],
            n_cols=n_cols,
            weight=walled(weight),
            rank=rank,
            scale=scale,
            scales=0 if scales is None else walled(scales),
            out=out,
            out_stride=out.stride,
        )
        return out.take()

    def add_scaled(
        self,
        y: np.ndarray,
        x: np.ndarray,
        scale: float = 1.0,
        scales: np.ndarray | None = None,
        in_place: bool = False,
    ) -> np.ndarray:
        more = rows(x)
        with into(y, in_place) as (source, out):
            self._by_rows(
                "add_scaled",
                low_rank_records.ADD_SCALED,
                len(y),
                y=source,
                out=out,
                stride=out.stride,
                n_cols=y.shape[1],
                x=more,
                x_stride=more.shape[1],
                scale=scale,
                scales=0 if scales is None else walled(scales),
            )
        return out.take()

    def widen(
        self,
        y: np.ndarray,
        h: np.ndarray,
        weight: np.ndarray,
        scale: float = 1.0,
        scales: np.ndarray | None = None,
        in_place: bool = False,
        chunk_cols: int | None = None,
        small: bool = False,
    ) -> np.ndarray:
        """chunk_cols: how many columns are a chunk, and of a chunk's tokens, by default all."""
        narrow_rows, (rank, n_cols) = rows(h), weight.shape
        chunk_cols = chunk_cols or n_cols
        with into(y, in_place) as (source, out):
            self._by_rows(
                "widen",
                low_rank_records.WIDEN,
                len(y),
                options={"small": small},
                fmt=FLOATS[weight.dtype],
                n_parts=-(-n_cols // chunk_cols),
                **{"small_chunk_cols" if small else "chunk_cols": chunk_cols},
                y=source,
                out=out,
                stride=out.stride,
                n_cols=n_cols,
                h=narrow_rows,
                h_stride=narrow_rows.shape[1],
                weight=walled(weight),
                rank=rank,
                scale=scale,
                scales=0 if scales is None else walled(scales),
            )
        return out.take()

    def rms_norm_backward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        dy: np.ndarray,
        epsilon: float,
        n_groups: int = 1,
        in_place: bool = False,
    ) -> np.ndarray:
        with into(dy, in_place) as (source, out):
            self._by_rows(
                "rms_norm_backward",
                gradient_records.RMS_NORM_BACKWARD,
                len(x),
                x=rows(x),
                weight=walled(weight),
                dy=source,
                out=out,
                stride=out.stride,
                n_groups=n_groups,
                n_cols=len(weight),
                epsilon=epsilon,
            )
        return out.take()

    def glu_backward(
        self, gate: np.ndarray, up: np.ndarray, dy: np.ndarray, activation: str, in_place: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        with into(gate, in_place) as (of_gate, d_gate), into(up, in_place) as (of_up, d_up):
            self._by_rows(
                "glu_backward",
                gradient_records.GLU_BACKWARD,
                len(gate),
                {"activation": activation},
                gate=of_gate,
                up=of_up,
                dy=rows(dy),
                d_gate=d_gate,
                d_up=d_up,
                stride=d_gate.stride,
            )
        return d_gate.take(), d_up.take()

    def multiply_columns(self, x: np.ndarray, weight: np.ndarray, in_place: bool = False) -> np.ndarray:
        with into(x, in_place) as (source, out):
            self._by_rows(
                "multiply_columns",
                low_rank_records.MULTIPLY_COLUMNS,
                len(x),
                x=source,
                out=out,
                weight=walled(weight),
                n_cols=len(weight),
                stride=out.stride,
            )
        return out.take()

    def dropout(self, x: np.ndarray, p: float, seed: int, in_place: bool = False, is_on: bool = True) -> np.ndarray:
        chance = before_a_wall(np.array([seed, is_on], np.int64).view(np.uint8))
        with into(x, in_place) as (source, out):
            self._by_rows(
                "dropout", gradient_records.DROPOUT, len(x), x=source, out=out, stride=out.stride, p=p, chance=chance
            )
        return out.take()

    def replace_rows(
        self, x: np.ndarray, table: np.ndarray | None, places: np.ndarray, in_place: bool = False
    ) -> np.ndarray:
        with into(x, in_place) as (source, out):
            self._by_rows(
                "replace_rows",
                records.REPLACE_ROWS,
                len(x),
                x=source,
                out=out,
                stride=out.stride,
                n_cols=x.shape[1],
                table=0 if table is None else walled(table),
                places=walled(places),
            )
        return out.take()

    def replaced_rows_sum(self, sums: np.ndarray, dy: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self._over_tokens(
            "replaced_rows_sum", gradient_records.REPLACED_ROWS_SUM, sums, {"dy": dy}, places=walled(places)
        )

    def activate(self, x: np.ndarray, activation: str, in_place: bool = False) -> np.ndarray:
        options = {"activation": activation}
        with into(x, in_place) as (source, out):
            self._by_rows("activate", records.ACTIVATE, len(x), options, x=source, out=out, stride=out.stride)
        return out.take()

    def activate_backward(self, x: np.ndarray, dy: np.ndarray, activation: str, in_place: bool = False) -> np.ndarray:
        options, gradient = {"activation": activation}, rows(dy)
        with into(x, in_place) as (source, out):
            self._by_rows(
                "activate_backward",
                gradient_records.ACTIVATE_BACKWARD,
                len(x),
                options,
                x=source,
                dy=gradient,
                out=out,
                stride=out.stride,
            )
        return out.take()

    def _over_tokens(
        self,
        op: str,
        schema: Schema,
        sums: np.ndarray,
        inputs: dict[str, np.ndarray],
        batch: dict[str, np.ndarray] | None = None,
        **fields: Any,
    ) -> np.ndarray:
        """sums [..., n_cols] after the op."""
        n_cols, (x, *_) = sums.shape[-1], inputs.values()
        memory = np.full(sums.size + 2, SENTINEL)
        memory[1:-1] = sums.reshape(-1)
        aligned = {name: rows(x) for name, x in inputs.items()}
        self.compiled._run(
            op,
            schema,
            -(-n_cols // ROW_ALIGN),
            len(x),
            batch=batch,
            stride=aligned[next(iter(inputs))].shape[1],
            n_cols=n_cols,
            sums=memory[1:],
            chunk_cols=ROW_ALIGN,
            **aligned,
            **fields,
        )
        assert memory[0] == memory[-1] == SENTINEL, "the kernel wrote outside of its sums"
        return memory[1:-1].reshape(sums.shape)

    def column_sums(self, sums: np.ndarray, x: np.ndarray) -> np.ndarray:
        return self._over_tokens("column_sums", gradient_records.COLUMN_SUMS, sums, {"x": x})

    def column_products(self, sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self._over_tokens("column_products", gradient_records.COLUMN_PRODUCTS, sums, {"a": a, "b": b})

    def rms_norm_weight_sum(
        self, sums: np.ndarray, x: np.ndarray, dy: np.ndarray, epsilon: float, n_groups: int = 1
    ) -> np.ndarray:
        fields = {"epsilon": epsilon, "n_groups": n_groups}
        return self._over_tokens(
            "rms_norm_weight_sum", gradient_records.RMS_NORM_WEIGHT_SUM, sums, {"x": x, "dy": dy}, **fields
        )

    def layer_norm_backward(self, x: np.ndarray, weight: np.ndarray, dy: np.ndarray, epsilon: float,
                            n_groups: int = 1, in_place: bool = False) -> np.ndarray:  # fmt: skip
        source, n_cols = rows(x), x.shape[1] // n_groups
        with into(dy, in_place) as (gradient, out):
            self._by_rows(
                "layer_norm_backward", gradient_records.LAYER_NORM_BACKWARD, len(x), x=source, weight=walled(weight),
                weight_step=n_cols if weight.ndim == 2 else 0, dy=gradient, out=out, stride=out.stride,
                n_groups=n_groups, n_cols=n_cols, epsilon=epsilon,
            )  # fmt: skip
        return out.take()

    def layer_norm_sums(self, sums: np.ndarray, bias_sums: np.ndarray, x: np.ndarray, dy: np.ndarray, epsilon: float,
                        n_groups: int = 1) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        found, n_cols = (sums.copy(), bias_sums.copy()), sums.shape[-1]
        source, gradient = rows(x), rows(dy)
        for part in range(2):  # either by itself, as where the other is not trained
            pointers = {name: found[i] if i == part else 0 for i, name in enumerate(("sums", "bias_sums"))}
            self.compiled._run(
                "layer_norm_sums", gradient_records.LAYER_NORM_SUMS, -(-n_cols // ROW_ALIGN), len(x), x=source,
                dy=gradient, stride=source.shape[1], n_groups=n_groups, n_cols=n_cols, epsilon=epsilon,
                step=n_cols if sums.ndim == 2 else 0, chunk_cols=ROW_ALIGN, **pointers,
            )  # fmt: skip
        return found

    def soft_cap_backward(self, y: np.ndarray, dy: np.ndarray, cap: float, in_place: bool = False) -> np.ndarray:
        source, schema = rows(y), gradient_records.SOFT_CAP_BACKWARD
        with into(dy, in_place) as (gradient, out):
            self._by_rows(
                "soft_cap_backward", schema, len(y), y=source, dy=gradient, out=out, stride=out.stride, cap=cap
            )
        return out.take()

    def embed_backward(self, sums: np.ndarray, token_ids: np.ndarray, dy: np.ndarray, scale: float = 1.0) -> np.ndarray:
        ids, schema = token_ids.astype(np.int32), gradient_records.EMBED_BACKWARD
        return self._over_tokens("embed_backward", schema, sums, {"dy": dy}, ids=ids, scale=scale)

    def cross_entropy(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray | None = None,
        in_place: bool = True,
        gradient: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Without a gradient, what takes its place is what stood there before."""
        n_tokens, n_cols = logits.shape
        nll = Output(n_tokens, 1)
        with into(logits, in_place) as (source, out):
            self.compiled._run(
                "cross_entropy",
                gradient_records.CROSS_ENTROPY,
                n_tokens,
                n_tokens,
                batch={"rows": targets.astype(np.int64)},
                x=source,
                out=out if gradient else 0,
                stride=out.stride,
                n_cols=n_cols,
                weights=0 if weights is None else walled(weights),
                nll=nll,
                nll_stride=nll.stride,
            )
        return nll.take()[:, 0], out.take()
