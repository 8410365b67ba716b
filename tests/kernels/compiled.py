"""Compiled kernels behind the signatures of their NumPy twins (`edgellm.kernels.reference`).

Whatever a kernel writes lies between walls of sentinels, whatever it reads beyond its input is poison, and
weights end at a page that nobody may read: a kernel that strays is found.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgellm.kernels import gradient_records, recent_records, records
from edgellm.kernels.gradient_records import (
    OUTER_COLS,
    OUTER_ROWS,
    OUTER_SCRATCH_BYTES,
    TRANSPOSED_SCRATCH_BYTES,
    TRANSPOSED_TOKENS,
)
from edgellm.kernels.group_sums import GroupSums, sums_for
from edgellm.kernels.isa import Isa
from edgellm.kernels.kv_types import F16_CACHE, CacheType
from edgellm.kernels.records import F32_TILE_COLS, KV_BLOCK, MAXIMA_GROUP, ROW_ALIGN, SPAN_TOKENS
from edgellm.kernels.reference import Quantized
from edgellm.kernels.reference_cache import PagedCache
from edgellm.kernels.registry import find
from edgellm.kernels.schema import Schema
from edgellm.kernels.store import KernelStore
from edgellm.quants import BlockFormat
from edgellm.quants.tiles import to_tiles

SENTINEL = np.float32(-12345.678)
TOKEN_ALIGN = 16  # a tile may compute so many tokens at once, beyond the batch too
TILE_ROWS = 64  # query rows of an attention task
RECENT_FIELDS = ("recent", "recent_block_bytes", "recent_key_bytes", "recent_value_bytes")
CHUNK_ROWS = 16  # of weights that a thread takes at a time
THREAD = 1  # not the first, so that a kernel that forgets whose scratch memory it uses is found


def rows(x: np.ndarray) -> np.ndarray:
    """x [n_tokens, ...] flat, as programs hold it: aligned rows, and poison in all that is beyond it."""
    assert x.dtype == np.float32
    n_tokens, width = len(x), int(np.prod(x.shape[1:]))
    padded = np.full((-(-n_tokens // TOKEN_ALIGN) * TOKEN_ALIGN, -(-width // ROW_ALIGN) * ROW_ALIGN), np.nan, x.dtype)
    padded[:n_tokens, :width] = x.reshape(n_tokens, width)
    return padded


def halves_of(x: np.ndarray) -> np.ndarray:
    """Rows of bfloat16, from float32 that are such numbers already: two in the place of one, poison beyond them."""
    bits = rows(x).view(np.uint32)
    assert not (bits[: len(x), : x.shape[1]] & 0xFFFF).any(), "these are no numbers of bfloat16"
    return np.ascontiguousarray((bits >> 16).astype(np.uint16)).view(np.float32)


def before_a_wall(raw: np.ndarray) -> np.ndarray:
    """A copy that ends where a page begins that cannot be read: reading on ends the process."""
    if sys.platform == "win32":
        return raw.copy()
    size = -(-raw.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, size + mmap.PAGESIZE), np.uint8)
    wall = ctypes.c_void_p(memory.ctypes.data + size)
    assert ctypes.CDLL(None).mprotect(wall, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = memory[size - raw.nbytes : size].reshape(raw.shape)
    copy[...] = raw
    return copy


class Output:
    """Rows for a kernel to write, between two rows of sentinels."""

    def __init__(self, n_tokens: int, width: int) -> None:
        self.n_tokens, self.width = n_tokens, width
        capacity = max(1, -(-n_tokens // TOKEN_ALIGN)) * TOKEN_ALIGN
        self.memory = np.full((capacity + 2, -(-width // ROW_ALIGN) * ROW_ALIGN), SENTINEL)
        self.address = self.memory[1:].ctypes.data
        self.stride = self.memory.shape[1]

    def take(self) -> np.ndarray:
        assert (self.memory[[0, -1]] == SENTINEL).all(), "the kernel wrote outside of its output"
        return self.memory[1 : self.n_tokens + 1, : self.width].copy()


@contextmanager
def into(x: np.ndarray, in_place: bool) -> Iterator[tuple[np.ndarray | Output, Output]]:
    """Where a kernel reads x, and where it writes: there too, or elsewhere, and then x must stay as it is."""
    source, out = rows(x), Output(len(x), int(np.prod(x.shape[1:])))
    if in_place:
        out.memory[1 : len(source) + 1] = source
        yield out, out
    else:
        yield source, out
        np.testing.assert_array_equal(source, rows(x), "the kernel wrote into its input")


class Scratch:
    """Memory of a thread's own, between walls."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.memory = np.full(n_bytes + (THREAD + 1) * n_bytes, 99, np.uint8)
        self.address = self.memory.ctypes.data

    def check(self) -> None:
        own = slice(THREAD * self.n_bytes, (THREAD + 1) * self.n_bytes)
        assert (np.delete(self.memory, own) == 99).all(), "the kernel wrote outside of its scratch memory"


class Compiled:
    """The kernels of an instruction set, compiled once and kept in the user's own kernel store."""

    def __init__(self, isa: Isa) -> None:
        self.store = KernelStore(isa)

    def embed(self, token_ids: np.ndarray, weights: np.ndarray, fmt: BlockFormat, scale: float = 1.0) -> np.ndarray:
        weights, n_cols = before_a_wall(weights), weights.shape[1] // fmt.block_bytes * fmt.block_size
        out = Output(len(token_ids), n_cols)
        ids = token_ids.astype(np.int32)
        self._run(
            "embed",
            records.EMBED,
            len(ids),
            len(ids),
            fmt,
            ids=ids,
            weights=weights,
            row_bytes=weights.shape[1],
            n_cols=n_cols,
            scale=scale,
            out=out,
            stride=out.stride,
        )
        return out.take()

    def select_rows(self, x: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        out = Output(len(wanted), x.shape[1])
        self._run(
            "select_rows",
            records.SELECT_ROWS,
            len(wanted),
            len(wanted),
            None,
            {"rows": wanted.astype(np.int64)},
            x=rows(x),
            out=out,
            stride=out.stride,
        )
        return out.take()

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self._elementwise("add", records.ADD, a=a, b=b)

    def glu(self, gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
        return self._elementwise("glu", records.GLU, {"activation": activation}, gate=gate, up=up)

    def _elementwise(
        self, op: str, schema: Schema, options: dict[str, Any] | None = None, **inputs: np.ndarray
    ) -> np.ndarray:
        (n_tokens, width), *_ = (x.shape for x in inputs.values())
        out = Output(n_tokens, width)
        self._run(
            op,
            schema,
            -(-n_tokens // 2),
            n_tokens,
            options=options,
            chunk_tokens=2,
            stride=out.stride,
            out=out,
            **{name: rows(x) for name, x in inputs.items()},
        )
        return out.take()

    def choose(self, x: np.ndarray, other: np.ndarray, scales: np.ndarray, in_place: bool = False) -> np.ndarray:
        n_tokens, _ = x.shape
        with into(x, in_place) as (source, out):
            self._run(
                "choose",
                records.CHOOSE,
                -(-n_tokens // 2),
                n_tokens,
                x=source,
                other=rows(other),
                scales=before_a_wall(scales.view(np.uint8)),
                out=out,
                stride=out.stride,
                chunk_tokens=2,
            )
        return out.take()

    def add_bias(self, x: np.ndarray, bias: np.ndarray, in_place: bool = False) -> np.ndarray:
        n_tokens, width = x.shape
        with into(x, in_place) as (source, out):
            self._run(
                "add_bias",
                records.ADD_BIAS,
                -(-n_tokens // 2),
                n_tokens,
                x=source,
                out=out,
                bias=before_a_wall(bias.view(np.uint8)),
                n_cols=width,
                stride=out.stride,
                chunk_tokens=2,
            )
        return out.take()

    def resize_heads(self, x: np.ndarray, n_heads: int, head_dim: int) -> np.ndarray:
        n_tokens, width = x.shape
        heads, out = rows(x), Output(n_tokens, n_heads * head_dim)
        self._run(
            "resize_heads",
            records.RESIZE_HEADS,
            -(-n_tokens // 2),
            n_tokens,
            x=heads,
            stride=heads.shape[1],
            head_dim=width // n_heads,
            out=out,
            out_stride=out.stride,
            out_head_dim=head_dim,
            n_heads=n_heads,
            chunk_tokens=2,
        )
        return out.take()

    def maxima(self, x: np.ndarray, chunk_groups: int) -> np.ndarray:
        n_tokens, n_cols = x.shape
        source, out = rows(x), Output(n_tokens, -(-n_cols // MAXIMA_GROUP))
        chunks_per_token = -(-out.width // chunk_groups)
        self._run(
            "maxima",
            records.MAXIMA,
            n_tokens * chunks_per_token,
            n_tokens,
            x=source,
            stride=source.shape[1],
            n_cols=n_cols,
            out=out,
            out_stride=out.stride,
            chunk_groups=chunk_groups,
            chunks_per_token=chunks_per_token,
        )
        return out.take()

    def sum_squares(self, x: np.ndarray, sums: np.ndarray) -> np.ndarray:
        source = rows(x)
        stride, width = source.shape[1], x.shape[1]
        walled = np.full(stride + 2, float(SENTINEL))
        walled[1 : width + 1] = sums
        self._run(
            "sum_squares",
            records.SUM_SQUARES,
            -(-stride // ROW_ALIGN),
            len(x),
            x=source,
            stride=stride,
            sums=walled[1:],
            chunk_cols=ROW_ALIGN,
        )
        assert walled[0] == walled[-1] == SENTINEL, "the kernel wrote outside of its sums"
        return walled[1 : width + 1]

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, epsilon: float, n_groups: int = 1) -> np.ndarray:
        n_tokens, width = x.shape
        out = Output(n_tokens, width)
        self._run(
            "rms_norm",
            records.RMS_NORM,
            -(-n_tokens // 2),
            n_tokens,
            x=rows(x),
            weight=weight,
            out=out,
            stride=out.stride,
            out_stride=out.stride,
            n_groups=n_groups,
            n_cols=width // n_groups,
            epsilon=epsilon,
            chunk_tokens=2,
        )
        return out.take()

    def rope(
        self, x: np.ndarray, angles: np.ndarray, interleaved: bool, in_place: bool = False, inverse: bool = False
    ) -> np.ndarray:
        n_tokens, n_heads, head_dim = x.shape
        half = angles.shape[1]
        table = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        positions = np.random.default_rng(n_tokens).permutation(n_tokens).astype(np.int32)
        by_position = table[np.argsort(positions)]
        with into(x, in_place) as (source, out):
            self._run(
                "rope",
                records.ROPE,
                -(-n_tokens // 2),
                n_tokens,
                options={"inverse": inverse},
                x=source,
                out=out,
                stride=out.stride,
                n_heads=n_heads,
                head_dim=head_dim,
                n_rot=2 * half,
                pair_step=1 if interleaved else half,
                table=np.array([by_position.ctypes.data]),
                positions=positions,
                chunk_tokens=2,
            )
        return out.take().reshape(x.shape)

    def quantize(self, x: np.ndarray, n_planes: int = 1) -> Quantized:
        return self.quantize_for(x, (), n_planes)[0]

    def quantize_for(
        self, x: np.ndarray, wanted: Iterable[GroupSums], n_planes: int = 1
    ) -> tuple[Quantized, dict[GroupSums, np.ndarray]]:
        """The input as int8, and those sums that are wanted."""
        n_tokens, n_cols = x.shape
        source = rows(x)
        out = Quantized(
            np.zeros((n_tokens, n_planes * n_cols), np.int8),
            np.zeros((n_tokens, n_cols // 32), np.float32),
            np.zeros((n_tokens, n_cols // 16), np.int32),
        )
        made = {
            kind: np.zeros((n_tokens, n_cols // kind.scale_group), np.int32 if kind.zero else np.float32)
            for kind in wanted
        }
        self._run(
            "quantize",
            records.QUANTIZE,
            -(-n_tokens // 2),
            n_tokens,
            options={"n_planes": n_planes},
            x=source,
            stride=source.shape[1],
            n_cols=n_cols,
            to=_record(records.QUANTIZED, **out._asdict(), **{kind.field: sums for kind, sums in made.items()}),
            chunk_tokens=2,
        )
        return out, made

    def linear(
        self, weights: np.ndarray, fmt: BlockFormat, x: Quantized, op: str = "linear_prefill", n_planes: int = 1
    ) -> np.ndarray:
        """op is "linear_decode", "linear_prefill", or one of those that read tiles, into which weights are put."""
        n_tokens, n_cols = len(x.q), x.q.shape[1] // n_planes
        capacity = -(-n_tokens // TOKEN_ALIGN) * TOKEN_ALIGN
        kind = sums_for(fmt)
        parts = x._asdict() | {kind.field: x.sums(kind)}
        padded = {name: np.resize(part, (capacity, part.shape[1])) for name, part in parts.items()}
        chunk_rows = CHUNK_ROWS * (self.store.isa.tiles_together if op.endswith("_prefill") else 1)
        of_amx = records.AMX_CONFIG_BYTES + records.AMX_SUMS_BYTES if op.endswith("_amx") else 0
        return self._linear(
            op,
            weights,
            fmt,
            n_cols,
            n_tokens,
            chunk_rows=chunk_rows,
            scratch_bytes=chunk_rows * (n_cols + 8 * (n_cols // fmt.scale_group)) + of_amx,
            options={"n_planes": n_planes},
            xq=_record(records.QUANTIZED, **padded),
        )

    def linear_f32(self, weights: np.ndarray, fmt: BlockFormat, x: np.ndarray, op: str = "linear_f32") -> np.ndarray:
        """op is "linear_f32" or, for float formats, "linear_f32_decode"."""
        padded, tile_rows = rows(x), self.store.isa.f32_tile_rows
        return self._linear(
            op,
            weights,
            fmt,
            x.shape[1],
            len(x),
            chunk_rows=tile_rows if op == "linear_f32" else CHUNK_ROWS,
            scratch_bytes=4 * tile_rows * F32_TILE_COLS,
            x=padded,
            x_stride=padded.shape[1],
        )

    def _linear(
        self,
        op: str,
        weights: np.ndarray,
        fmt: BlockFormat,
        n_cols: int,
        n_tokens: int,
        chunk_rows: int,
        scratch_bytes: int,
        **fields: Any,
    ) -> np.ndarray:
        n_rows = len(weights)
        memory = to_tiles(fmt, weights) if op.startswith("linear_tiles") else weights
        out, scratch = Output(n_tokens, n_rows), Scratch(scratch_bytes)
        self._run(
            op,
            records.LINEAR,
            -(-n_rows // chunk_rows),
            n_tokens,
            fmt,
            weights=before_a_wall(memory),
            row_bytes=weights.shape[1],
            n_rows=n_rows,
            n_cols=n_cols,
            out=out,
            out_stride=out.stride,
            chunk_rows=chunk_rows,
            scratch=scratch,
            scratch_bytes=scratch.n_bytes,
            prefetch_distance=1 << 12,
            n_threads=2,
            **fields,
        )
        scratch.check()
        return out.take()

    def linear_transposed(self, weights: np.ndarray, fmt: BlockFormat, x: np.ndarray) -> np.ndarray:
        n_tokens, n_cols = len(x), weights.shape[1] // fmt.block_bytes * fmt.block_size
        n_chunks = -(-n_cols // F32_TILE_COLS) * -(-n_tokens // TRANSPOSED_TOKENS)
        out = self._transposed("linear_transposed", weights, fmt, x, rows(x), n_chunks, TRANSPOSED_SCRATCH_BYTES)
        if np.isfinite(x).all():
            assert not out.memory[1 : n_tokens + 1, n_cols:].any(), "what pads rows is not 0"
        return out.take()

    def _transposed(
        self,
        op: str,
        weights: np.ndarray,
        fmt: BlockFormat,
        x: np.ndarray,
        held: np.ndarray,
        n_chunks: int,
        n_bytes: int,
    ) -> Output:
        """held: x as the kernel reads it. n_bytes: of scratch memory."""
        (n_tokens, n_rows), n_cols = x.shape, weights.shape[1] // fmt.block_bytes * fmt.block_size
        out, scratch = Output(n_tokens, n_cols), Scratch(n_bytes)
        self._run(
            op,
            gradient_records.LINEAR_TRANSPOSED,
            n_chunks,
            n_tokens,
            fmt,
            weights=before_a_wall(weights),
            row_bytes=weights.shape[1],
            n_rows=n_rows,
            n_cols=n_cols,
            x=held,
            x_stride=held.shape[1],
            out=out,
            out_stride=out.stride,
            scratch=scratch,
            scratch_bytes=scratch.n_bytes,
        )
        scratch.check()
        return out

    def linear_bf16(self, weights: np.ndarray, fmt: BlockFormat, x: np.ndarray) -> np.ndarray:
        """On CPUs with AMX; x are rows that are bfloat16 already, as float32."""
        halves = halves_of(x)
        return self._linear(
            "linear_bf16",
            weights,
            fmt,
            x.shape[1],
            len(x),
            chunk_rows=gradient_records.AMX_ROWS,
            scratch_bytes=gradient_records.AMX_SCRATCH_BYTES,
            x=halves,
            x_stride=halves.shape[1],
        )

    def linear_bf16_transposed(self, weights: np.ndarray, fmt: BlockFormat, x: np.ndarray) -> np.ndarray:
        n_cols = weights.shape[1] // fmt.block_bytes * fmt.block_size
        n_chunks = -(-n_cols // gradient_records.amx_sum_cols(fmt.block_size))
        n_bytes = gradient_records.amx_sum_scratch_bytes(fmt.block_size)
        return self._transposed("linear_bf16_transposed", weights, fmt, x, halves_of(x), n_chunks, n_bytes).take()

    def outer_sum(self, a: np.ndarray, b: np.ndarray, g: np.ndarray, gap: int = 0, scale: float = 1.0) -> np.ndarray:
        """gap: floats between the rows of g, which must stay as they are."""
        (n_rows, n_cols), (left, right), scratch = g.shape, (rows(a), rows(b)), Scratch(OUTER_SCRATCH_BYTES)
        walled = np.full((n_rows + 2, n_cols + gap), SENTINEL)
        walled[1:-1, :n_cols] = g
        self._run(
            "outer_sum",
            gradient_records.OUTER_SUM,
            -(-n_rows // OUTER_ROWS) * -(-n_cols // OUTER_COLS),
            len(a),
            a=left,
            a_stride=left.shape[1],
            b=right,
            b_stride=right.shape[1],
            g=walled[1:],
            g_stride=n_cols + gap,
            n_rows=n_rows,
            n_cols=n_cols,
            scale=scale,
            scratch=scratch,
            scratch_bytes=scratch.n_bytes,
        )
        scratch.check()
        assert (walled[[0, -1]] == SENTINEL).all(), "the kernel wrote outside of its sums"
        assert (walled[:, n_cols:] == SENTINEL).all(), "the kernel wrote between the rows of its sums"
        return walled[1:-1, :n_cols].copy()

    def kv_append(
        self,
        keys: np.ndarray,
        values: np.ndarray,
        slots: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        kv_type: CacheType = F16_CACHE,
    ) -> None:
        """keys and values: views of one cache, which begins with the keys."""
        self._kv_append(_cache_fields(keys, values, kv_type), kv_type, slots, k, v)

    def append_to(self, cache: PagedCache, slots: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        self._kv_append(_fields_of(cache), cache.kind, slots, k, v)
        if cache.recent is None:
            return
        self.append_to(cache.recent, slots, k, v)
        of, to = _fields_of(cache.recent), _fields_of(cache)
        full = [(slot // KV_BLOCK, slot // KV_BLOCK) for slot in slots if slot % KV_BLOCK == KV_BLOCK - 1]
        self._run(
            "quantize_keys",
            recent_records.QUANTIZE_KEYS,
            len(full) * cache.n_kv_heads,
            len(slots),
            n_heads=cache.n_kv_heads,
            key_dim=to["key_dim"],
            cache=to["cache"],
            block_bytes=to["block_bytes"],
            key_bytes=to["key_bytes"],
            recent=of["cache"],
            recent_block_bytes=of["block_bytes"],
            recent_key_bytes=of["key_bytes"],
            tasks=_table(recent_records.FULL_BLOCK_TASK, full),
        )

    def _kv_append(
        self, fields: dict[str, Any], kv_type: CacheType, slots: np.ndarray, k: np.ndarray, v: np.ndarray
    ) -> None:
        n_tokens, n_heads, _ = k.shape
        scratch = Scratch(4 * max(k.shape[2], v.shape[2]))
        k_rows, v_rows = rows(k), rows(v)
        self._run(
            "kv_append",
            records.KV_APPEND,
            -(-n_tokens // 2),
            n_tokens,
            kv_type,
            slots=slots.astype(np.int64),
            k=k_rows,
            k_stride=k_rows.shape[1],
            v=v_rows,
            v_stride=v_rows.shape[1],
            n_heads=n_heads,
            chunk_tokens=2,
            scratch=scratch,
            scratch_bytes=scratch.n_bytes,
            **fields,
        )
        scratch.check()

    def attention(
        self,
        q: np.ndarray,
        keys: np.ndarray,
        values: np.ndarray,
        block_table: np.ndarray,
        position: int,
        scale: float,
        window: int | None = None,
        split: int = 0,
        kv_type: CacheType = F16_CACHE,
        soft_cap: float = 0.0,
        slopes: np.ndarray | None = None,
        sinks: np.ndarray | None = None,
    ) -> np.ndarray:
        """float32 [n_tokens, n_heads, value_dim]; split: so many tokens at a time, in spans that are merged then."""
        cache = _cache_fields(keys, values, kv_type)
        return self._attention(
            q, cache, keys.shape[1], kv_type, block_table, position, scale, window, split, soft_cap, slopes, sinks
        )

    def attention_over(
        self,
        q: np.ndarray,
        cache: PagedCache,
        block_table: np.ndarray,
        position: int,
        scale: float,
        window: int | None = None,
        split: int = 0,
    ) -> np.ndarray:
        fields = _fields_of(cache)
        if cache.recent is not None:
            recent = _fields_of(cache.recent)
            fields |= {f"recent_{name}": recent[name] for name in ("block_bytes", "key_bytes", "value_bytes")}
            fields |= {"recent": recent["cache"]}
        return self._attention(q, fields, cache.n_kv_heads, cache.kind, block_table, position, scale, window, split)

    def _attention(
        self,
        q: np.ndarray,
        cache: dict[str, Any],
        n_kv_heads: int,
        kv_type: CacheType,
        block_table: np.ndarray,
        position: int,
        scale: float,
        window: int | None,
        split: int,
        soft_cap: float = 0.0,
        slopes: np.ndarray | None = None,
        sinks: np.ndarray | None = None,
    ) -> np.ndarray:
        n_tokens, n_heads, key_dim = q.shape
        value_dim = cache["value_dim"]
        group = n_heads // n_kv_heads
        at_once = int(split) or max(1, TILE_ROWS // group)
        table = block_table.astype(np.int32)
        tasks, merges, n_slots = [], [], 0
        for token, n in _slices(position, n_tokens, at_once, kv_type):
            here, at = position + token, (table.ctypes.data, table.ctypes.data)
            if not split:
                tasks.append((token, n, here, 0, here + n, *at, -1))
                continue
            first = 0 if window is None else max(0, here - window + 1)
            spans = range(first // SPAN_TOKENS * SPAN_TOKENS, here + n, SPAN_TOKENS)
            merges += [(token + i, n_slots + i, len(spans), n) for i in range(n)]
            tasks += [
                (token, n, here, begin, min(begin + SPAN_TOKENS, here + n), *at, n_slots + n * i)
                for i, begin in enumerate(spans)
            ]
            n_slots += n * len(spans)

        out, q_rows = Output(n_tokens, n_heads * value_dim), rows(q)
        partial = np.full((n_slots + 1, n_heads, value_dim + 2), SENTINEL)
        scratch = Scratch(records.attention_scratch_bytes(max(TILE_ROWS, n_heads), key_dim, value_dim))
        shared = {
            "partial": partial,
            "out": out,
            "out_stride": out.stride,
            "sinks": 0 if sinks is None else sinks,
            "scratch": scratch,
            "scratch_bytes": scratch.n_bytes,
        }
        self._run(
            "attention",
            records.ATTENTION,
            len(tasks) * n_kv_heads,
            n_tokens,
            kv_type,
            q=q_rows,
            q_stride=q_rows.shape[1],
            n_kv_heads=n_kv_heads,
            group=group,
            scale=scale,
            window=window or 1 << 40,
            soft_cap=soft_cap,
            slopes=0 if slopes is None else slopes,
            tasks=_table(records.ATTENTION_TASK, tasks),
            chunk_heads=1,
            chunk_count=np.array([len(tasks) * n_kv_heads]),
            n_threads=2,
            **shared,
            **(dict.fromkeys(RECENT_FIELDS, 0) | cache),
        )
        if split:
            self._run(
                "attention_merge",
                records.ATTENTION_MERGE,
                len(merges),
                n_tokens,
                n_heads=n_heads,
                value_dim=value_dim,
                tasks=_table(records.MERGE_TASK, merges),
                **shared,
            )
        assert (partial[-1] == SENTINEL).all(), "the kernel wrote behind the partial results"
        scratch.check()
        return out.take().reshape(n_tokens, n_heads, value_dim)

    def _run(
        self,
        op: str,
        schema: Schema,
        n_chunks: int,
        n_tokens: int,
        fmt: BlockFormat | CacheType | None = None,
        batch: dict[str, np.ndarray] | None = None,
        options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Run all chunks of an op, the last one first: none may need another."""
        kernel = find(op, fmt, **(options or {}))
        self.store.load([kernel])
        function = self.store.function(kernel)
        of_batch = _record(records.BATCH, n_tokens=n_tokens, **(batch or {}))
        record = _record(schema, batch=of_batch, **fields)
        for chunk in reversed(range(n_chunks)):
            function(record.ctypes.data, chunk, THREAD)


def _slices(position: int, n_tokens: int, at_once: int, kv_type: CacheType) -> Iterator[tuple[int, int]]:
    """The first and the number of tokens that are together: of one block, where it is kept apart until it is full."""
    token = 0
    while token < n_tokens:
        n = min(at_once, n_tokens - token)
        if kv_type.recent:
            n = min(n, KV_BLOCK - (position + token) % KV_BLOCK)
        yield token, n
        token += n


def _cache_fields(keys: np.ndarray, values: np.ndarray, kv_type: CacheType) -> dict[str, Any]:
    """Where keys and values are: views of one cache, which begins with the keys."""
    return _cache_words(keys, keys.strides[0], keys.shape[2], values.shape[3], kv_type)


def _cache_words(memory: np.ndarray, block_bytes: int, key_dim: int, value_dim: int, kind: CacheType) -> dict[str, Any]:
    return {
        "cache": memory,
        "block_bytes": block_bytes,
        "key_dim": key_dim,
        "value_dim": value_dim,
        "key_bytes": kind.keys.head_bytes(key_dim),
        "value_bytes": kind.values.head_bytes(value_dim),
    }


def _fields_of(cache: PagedCache) -> dict[str, Any]:
    return _cache_words(cache.memory, cache.memory.strides[0], cache.key_dim, cache.value_dim, cache.kind)


def _record(schema: Schema, **fields: Any) -> np.ndarray:
    """A record with these words; of arrays, records and outputs it takes the address. The caller keeps them alive."""
    record = schema.new()
    for name, content in fields.items():
        if isinstance(content, (Output, Scratch)):
            record[name] = content.address
        else:
            record[name] = content.ctypes.data if isinstance(content, np.ndarray) else content
    return record


def _table(schema: Schema, entries: list[tuple[int, ...]]) -> np.ndarray:
    table = schema.new(len(entries))
    table[:] = entries
    return table
