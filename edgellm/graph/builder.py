"""The words in which an architecture states its forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph.ops import Buffer, Chunks, Fixed, Op, Quantized, Table, Value
from edgellm.graph.tuning import Tuning
from edgellm.kernels import records
from edgellm.kernels.isa import Isa
from edgellm.kernels.kv_types import F16, KVType
from edgellm.kernels.records import MAXIMA_GROUP, TILE_ROWS
from edgellm.kernels.registry import find
from edgellm.kernels.schema import Schema
from edgellm.quants.floats import FloatFormat

ELEMENTS_PER_CHUNK = 8192  # of elementwise work: a few microseconds
TURNS = 2  # chunks for each thread, at least: one that starts late still gets its share
SQUARES_PER_CHUNK = 64  # columns that are added up over all tokens, a multiple of ROW_ALIGN
ROWS_TOGETHER = 16  # decode kernels advance by 4, 8 or 16 rows: chunks are multiples of all
MAXIMA_PER_CHUNK = 512  # groups of logits, of 64 each
ATTENTION_ROWS = 72  # query rows (tokens times heads of a group) that share the keys and values they load
HEAD_ALIGN = 16  # attention and its cache work on heads of so many dimensions, or a multiple
MAX_SPLITS = 256  # pieces in one batch


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary embedding: how fast each pair of dimensions turns, and which dimensions make a pair.

    frequencies:  float64 [n_rot / 2], radians for each position.
    interleaved:  pairs are neighbours (2i, 2i + 1); otherwise (i, i + n_rot / 2).
    """

    frequencies: np.ndarray
    interleaved: bool

    @property
    def table(self) -> Table:
        return Table(f"rope {id(self)}")


class Graph:
    """Records ops as an architecture calls for them.

    Every method takes and returns values: float32 rows, one for each token of the batch. `ops` is the record,
    `outputs` what must outlive a run.

    observe:  in every run, also add up the squares of what each linear is given.
    squares:  these sums so far, by the name of the linear's weight: float64 [n_in], over all tokens.
    """

    def __init__(self, isa: Isa, tuning: Tuning, kv_type: KVType = F16, observe: bool = False) -> None:
        self.isa = isa
        self.tuning = tuning
        self.kv_type = kv_type
        self.ops: list[Op] = []
        self.outputs: list[Buffer] = []
        self.constants: list[np.ndarray] = []  # converted weights that the file does not hold
        self.ropes: list[Rope] = []
        self.windows: list[int | None] = []  # kinds of attention, by how far they look back
        self.cache_layers: list[tuple[int, int]] = []  # (n_kv_heads, head_dim) of what each attention keeps
        self.observe = observe
        self.squares: dict[str, np.ndarray] = {}
        self._observed: dict[Value, np.ndarray] = {}
        self._partial: Fixed | None = None

    def input(self, width: int) -> Value:
        """Rows that somebody else fills."""
        value = Value(width, "input")
        self.outputs.append(value)
        return value

    def output(self, value: Value, name: str = "") -> Value:
        """Keep a value beyond the run, for anyone to read."""
        value.name = name or value.name
        self.outputs.append(value)
        return value

    # --- ops ----------------------------------------------------------------------------------------------

    def embed(self, weight: Tensor, scale: float = 1.0) -> Value:
        """Rows of `weight` [n_vocab, n_embd], one for each token id of the batch."""
        out = Value(weight.shape[1], weight.name)
        self._add(
            "embed",
            records.EMBED,
            Chunks("tokens"),
            [],
            [out],
            format=weight.format,
            weights=weight.address,
            row_bytes=weight.format.row_bytes(weight.shape[1]),
            n_cols=weight.shape[1],
            scale=scale,
            out=out,
            stride=out.stride,
        )
        return out

    def rms_norm(self, x: Value, weight: Tensor, epsilon: float, n_heads: int = 1) -> Value:
        """Root mean square norm of whole rows, or of each of `n_heads` equal parts of them."""
        out = Value(x.width, weight.name)
        self._add_rows(
            "rms_norm",
            records.RMS_NORM,
            x,
            [x],
            [out],
            x=x,
            weight=self._floats(weight),
            out=out,
            out_stride=out.stride,
            n_groups=n_heads,
            n_cols=x.width // n_heads,
            epsilon=epsilon,
        )
        return out

    def linear(self, x: Value, weight: Tensor, fine: bool = False) -> Value:
        """W x, for `weight` [n_out, n_in] of any format.

        fine:  x in two planes of int8 rather than one, which costs twice the multiplies and no more memory.
        """
        if self.observe:
            self.squares[weight.name] = self._sum_squares(x)[: x.width]
        n_rows, n_cols = weight.shape
        out = Value(n_rows, weight.name)
        row_bytes = weight.format.row_bytes(n_cols)
        is_float = isinstance(weight.format, FloatFormat)
        source = x if is_float else self._quantize(x, 2 if fine else 1)
        prefix = "fine_" if fine and not is_float else ""
        n_threads = self.tuning.n_threads
        turns = max(TURNS, round(n_rows * row_bytes / (n_threads * self.tuning.chunk_bytes)))
        chunk_rows = -(-n_rows // (turns * n_threads * ROWS_TOGETHER)) * ROWS_TOGETHER
        groups = n_cols if is_float else -(-n_cols // weight.format.scale_group)
        tile_bytes = TILE_ROWS * (4 * n_cols if is_float else n_cols + 8 * groups)
        self._add(
            f"{prefix}linear_prefill",
            records.LINEAR,
            Chunks("tokens", 1 << 30, -(-n_rows // TILE_ROWS), few=-(-n_rows // chunk_rows)),
            [source],
            [out],
            format=weight.format,
            few=f"{prefix}linear_decode",
            scratch=tile_bytes,
            weights=weight.address,
            row_bytes=row_bytes,
            n_rows=n_rows,
            n_cols=n_cols,
            **({"x": x} if is_float else {"xq": source}),
            x_stride=x.stride,
            out=out,
            out_stride=out.stride,
            chunk_rows=chunk_rows,
            ahead=(ROWS_TOGETHER if is_float else self.isa.decode_rows) * row_bytes + self.tuning.ahead_bytes,
            n_threads=n_threads,
        )
        return out

    def add(self, a: Value, b: Value) -> Value:
        out = Value(a.width, "sum")
        self._add_rows(
            "add",
            records.ADD,
            a,
            [a, b],
            [out],
            a=a,
            b=b,
            out=out,
        )
        return out

    def add_bias(self, x: Value, bias: Tensor) -> Value:
        """x + bias, in place."""
        self._add_rows("add_bias", records.ADD_BIAS, x, [], [x], x=x, bias=self._floats(bias), n_cols=x.width)
        return x

    def glu(self, gate: Value, up: Value, activation: str) -> Value:
        """activation(gate) * up, for the activation "silu" or "gelu"."""
        out = Value(gate.width, "glu")
        self._add_rows(
            f"{activation}_glu",
            records.GLU,
            gate,
            [gate, up],
            [out],
            gate=gate,
            up=up,
            out=out,
        )
        return out

    def rope(self, x: Value, n_heads: int, rope: Rope) -> Value:
        """Turn the leading dimensions of every head by the token's position, in place."""
        if rope not in self.ropes:
            self.ropes.append(rope)
        n_rot = 2 * len(rope.frequencies)
        self._add_rows(
            "rope",
            records.ROPE,
            x,
            [],
            [x],
            x=x,
            n_heads=n_heads,
            head_dim=x.width // n_heads,
            n_rot=n_rot,
            pair_step=1 if rope.interleaved else n_rot // 2,
            table=rope.table,
        )
        return x

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        n_heads: int,
        n_kv_heads: int,
        scale: float,
        window: int | None = None,
    ) -> Value:
        """Causal attention of new tokens to themselves and to all before them in the cache, which takes k and v.

        window:  positions a token looks back over, itself included; None is no limit.
        """
        own_head_dim = q.width // n_heads
        if own_head_dim % HEAD_ALIGN:  # zeros change no score, and give zeros
            padded = -(-own_head_dim // HEAD_ALIGN) * HEAD_ALIGN
            q = self._resize_heads(q, n_heads, padded)
            k, v = (self._resize_heads(x, n_kv_heads, padded) for x in (k, v))
            a = self.attention(q, k, v, n_heads, n_kv_heads, scale, window)
            return self._resize_heads(a, n_heads, own_head_dim)
        head_dim, layer = q.width // n_heads, len(self.cache_layers)
        self.cache_layers.append((n_kv_heads, head_dim))
        cache, block_bytes = Table(f"cache {layer}"), self.kv_type.block_bytes(n_kv_heads, head_dim)
        self._add_rows(
            "kv_append",
            records.KV_APPEND,
            k,
            [k, v],
            [cache],
            format=self.kv_type,
            k=k,
            v=v,
            n_heads=n_kv_heads,
            head_dim=head_dim,
            cache=cache,
            block_bytes=block_bytes,
        )

        if window not in self.windows:
            self.windows.append(window)
        kind = self.windows.index(window)
        out = Value(q.width, "attention")
        partial_bytes = MAX_SPLITS * n_heads * (head_dim + 2) * 4
        if self._partial is None or self._partial.n_bytes < partial_bytes:
            self._partial = Fixed(partial_bytes, "attention splits")
        self._add(
            "attention",
            records.ATTENTION,
            Chunks(f"tasks {kind}", 1, n_kv_heads),
            [q, cache],
            [out, self._partial],
            format=self.kv_type,
            scratch=records.attention_scratch_bytes(max(ATTENTION_ROWS, n_heads // n_kv_heads), head_dim),
            q=q,
            q_stride=q.stride,
            out=out,
            out_stride=out.stride,
            n_kv_heads=n_kv_heads,
            group=n_heads // n_kv_heads,
            head_dim=head_dim,
            scale=scale,
            window=window or 1 << 40,
            cache=cache,
            block_bytes=block_bytes,
            tasks=Table(f"tasks {kind}"),
            n_threads=self.tuning.n_threads,
            partial=self._partial,
        )
        self._add(
            "attention_merge",
            records.ATTENTION_MERGE,
            Chunks(f"merges {kind}"),
            [self._partial],
            [out],
            scratch=4 * n_heads * (head_dim + 2),
            tasks=Table(f"merges {kind}"),
            partial=self._partial,
            out=out,
            out_stride=out.stride,
            n_heads=n_heads,
            head_dim=head_dim,
        )
        return out

    def select_rows(self, x: Value) -> Value:
        """The rows of x that the batch names."""
        out = Value(x.width, "selected")
        self._add("select_rows", records.SELECT_ROWS, Chunks("tokens"), [x], [out], x=x, out=out, stride=x.stride)
        return out

    def maxima(self, x: Value) -> Value:
        """The largest of every MAXIMA_GROUP neighbours of a row."""
        n_groups = -(-x.width // MAXIMA_GROUP)
        out = Value(n_groups, "maxima")
        chunks_per_token = -(-n_groups // MAXIMA_PER_CHUNK)
        self._add(
            "maxima",
            records.MAXIMA,
            Chunks("tokens", 1, chunks_per_token),
            [x],
            [out],
            x=x,
            stride=x.stride,
            n_cols=x.width,
            out=out,
            out_stride=out.stride,
            chunk_groups=MAXIMA_PER_CHUNK,
            chunks_per_token=chunks_per_token,
        )
        return out

    def _resize_heads(self, x: Value, n_heads: int, head_dim: int) -> Value:
        """Heads of another size: cut off, or filled up with zeros."""
        out = Value(n_heads * head_dim, x.name)
        self._add_rows(
            "resize_heads",
            records.RESIZE_HEADS,
            x,
            [x],
            [out],
            x=x,
            head_dim=x.width // n_heads,
            out=out,
            out_stride=out.stride,
            out_head_dim=head_dim,
            n_heads=n_heads,
        )
        return out

    # --- helpers ------------------------------------------------------------------------------------------

    def _quantize(self, x: Value, n_planes: int) -> Quantized:
        """x as int8, made once for all linears that read it."""
        if n_planes not in x.quantized:
            x.quantized[n_planes] = Quantized(x.width, x.name, n_planes)
            self._add_rows(
                "quantize" if n_planes == 1 else "fine_quantize",
                records.QUANTIZE,
                x,
                [x],
                [x.quantized[n_planes]],
                x=x,
                n_cols=x.width,
                to=x.quantized[n_planes],
            )
        return x.quantized[n_planes]

    def _sum_squares(self, x: Value) -> np.ndarray:
        """The sums of squares of x, float64 [stride]: made once for all linears that read it."""
        if x not in self._observed:
            sums = self._observed[x] = np.zeros(x.stride)
            self._add(
                "sum_squares",
                records.SUM_SQUARES,
                Chunks("tokens", 1 << 30, -(-x.stride // SQUARES_PER_CHUNK)),
                [x],
                [],
                x=x,
                stride=x.stride,
                sums=sums.ctypes.data,
                chunk_cols=SQUARES_PER_CHUNK,
            )
        return self._observed[x]

    def _floats(self, weight: Tensor) -> int:
        """The address of a small weight as float32."""
        if weight.format.name == "F32":
            return weight.address
        self.constants.append(np.ascontiguousarray(weight.dequantize()))
        return self.constants[-1].ctypes.data

    def _add_rows(self, op: str, schema: Schema, rows: Value, reads: list, writes: list, **fields: Any) -> None:
        """An op that does something to every row by itself; `rows` is one of its values, for their size."""
        per_chunk = max(1, ELEMENTS_PER_CHUNK // rows.width)
        chunks = Chunks("tokens", per_chunk)
        self._add(op, schema, chunks, reads, writes, stride=rows.stride, chunk_tokens=per_chunk, **fields)

    def _add(self, op, schema, chunks, reads, writes, format=None, few=None, scratch=0, **fields) -> None:
        self.ops.append(
            Op(
                find(op, format),
                schema,
                fields,
                chunks,
                reads,
                writes,
                find(few, format) if few else None,
                scratch,
            )
        )
