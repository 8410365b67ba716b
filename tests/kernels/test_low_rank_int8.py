"""Low-rank steps in integers, on all instruction sets, beside what NumPy makes of the same integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.kernels import low_rank_records, records, reference
from edgellm.kernels.group_sums import sums_for
from edgellm.kernels.low_rank_records import LARGEST_NARROWED, LEAST_NARROWED, NARROWED_AT
from edgellm.kernels.records import PREFETCHES
from edgellm.kernels.reference import Quantized
from edgellm.quants import FORMATS
from edgellm.quants.low_rank import BYTES, PIECE_ROWS, pack_a, pack_b
from edgellm.quants.tiles import to_tiles
from tests.quants.test_low_rank import unpacked_a, unpacked_b

from .compiled import Compiled, Output, _record, before_a_wall, into, rows
from .conftest import AVAILABLE, DISTINCT, thorough_unless
from .weights import random_weights

RANKS = (1, 8, 12, 33)
# Some count in part, one not at all.
SCALES = np.array([1, 0, -0.5, 2, 0], np.float32)
N_TOKENS = len(SCALES)
SUM = 2e-6


@pytest.fixture
def rng() -> np.random.Generator:
    KEPT.clear()
    return np.random.default_rng(5)


KEPT: list[Any] = []  # what records point to


def as_record(x: Quantized) -> np.ndarray:
    """With the sums that weights of Q8_0 need. Every number is at the end of what may be read."""
    kind = sums_for(BYTES)
    parts = {**x._asdict(), kind.field: x.sums(kind).astype(np.int32)}
    kept = {name: before_a_wall(np.ascontiguousarray(part).view(np.uint8)) for name, part in parts.items()}
    record = _record(records.QUANTIZED, **kept)
    KEPT.append((kept, record))
    return record


class Narrowed:
    """Memory for h of some tokens, as records describe it, that ends where nothing may be read."""

    def __init__(self, n: int, rank: int) -> None:
        self.width = -(-rank // PIECE_ROWS) * PIECE_ROWS
        self.stride = -(-(NARROWED_AT // 4 + self.width) // records.ROW_ALIGN) * records.ROW_ALIGN
        self.memory = before_a_wall(np.zeros((n, self.stride * 4), np.uint8))

    @property
    def scales(self) -> np.ndarray:
        return self.memory[:, :4].view(np.float32)

    @property
    def numbers(self) -> np.ndarray:
        return self.memory[:, NARROWED_AT : NARROWED_AT + 2 * self.width].view(np.int16)

    @classmethod
    def of(cls, h: np.ndarray) -> Narrowed:
        result = cls(*h.shape)
        rounded, scales = as_int16(np.pad(h, ((0, 0), (0, result.width - h.shape[1]))))
        result.numbers[...], result.scales[...] = rounded, scales
        return result

    def rows(self, some: slice) -> Narrowed:
        result = Narrowed(len(self.memory[some]), self.width)
        result.memory[...] = self.memory[some]
        return result

    def dequantize(self) -> np.ndarray:
        return self.numbers.astype(np.float64) * self.scales


def as_int16(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """h as int16, and the scale of each row: in float32, as the kernel does it."""
    largest = np.abs(h).max(-1, keepdims=True)
    inverse = np.float32(LARGEST_NARROWED) / np.where(largest > LEAST_NARROWED, largest, np.float32(np.inf))
    return np.rint(h * inverse).astype(np.int16), largest * np.float32(1 / LARGEST_NARROWED)


def narrowed(
    compiled: Compiled, x: Quantized, packed: np.ndarray, rank: int, scale: float, scales: np.ndarray | None
) -> Narrowed:
    n = len(x.q)
    out = Narrowed(n, rank)
    compiled._run(
        "narrow_int8",
        low_rank_records.NARROW_INT8,
        -(-n // 2),
        n,
        **narrow_fields(as_record(x), x.q.shape[1], packed, rank, scale, scales, out),
        chunk_tokens=2,
    )
    return out


def narrow_fields(
    xq: np.ndarray, n_cols: int, packed: np.ndarray, rank: int, scale: float, scales: np.ndarray | None, out: Narrowed
) -> dict[str, Any]:
    return {
        "xq": xq,
        "n_cols": n_cols,
        "weight": before_a_wall(packed),
        "n_pieces": packed.shape[0],
        "piece_bytes": packed.shape[1],
        "rank": rank,
        "scale": scale,
        "scales": 0 if scales is None else scales,
        "out": out.memory,
        "out_stride": out.stride,
    }


@pytest.mark.parametrize("rank", RANKS)
def test_narrow(compiled: Compiled, rng: np.random.Generator, rank: int) -> None:
    x = reference.quantize(rng.standard_normal((N_TOKENS, 96), np.float32))
    a = rng.standard_normal((rank, 96), np.float32)
    packed, factor = pack_a(a)
    want = 1.5 * x.dequantize() @ unpacked_a(packed, factor, rank, 96).T
    for scales in (None, SCALES):
        some = slice(None) if scales is None else scales != 0
        found = narrowed(compiled, x, packed, rank, 1.5 * factor, scales)
        largest = np.abs(want[some]).max(-1, keepdims=True)
        assert (np.abs(found.numbers[some]).max(-1) == LARGEST_NARROWED).all()
        np.testing.assert_allclose(found.scales[some], largest / LARGEST_NARROWED, rtol=1e-5)
        differences = np.abs(found.dequantize()[some, :rank] - want[some])
        assert (differences <= largest * (0.5 / LARGEST_NARROWED) + SUM * 96).all()
        assert not found.numbers[some, rank:].any()
        alone = narrowed(compiled, Quantized(*(part[2:3] for part in x)), packed, rank, 1.5 * factor, None)
        np.testing.assert_array_equal(alone.numbers[0], found.numbers[2])
        assert alone.scales[0] == found.scales[2]


def test_what_is_next_to_nothing_is_zero(compiled: Compiled, rng: np.random.Generator) -> None:
    x = reference.quantize(rng.standard_normal((2, 32), np.float32))
    packed, factor = pack_a(rng.standard_normal((3, 32), np.float32))
    for scale in (0.0, 1e-36):
        found = narrowed(compiled, x, packed, 3, scale * factor, None)
        assert not found.numbers.any() and (found.scales <= 1e-36).all()


def test_numbers_that_are_none_spoil_a_row(compiled: Compiled, rng: np.random.Generator) -> None:
    x = reference.quantize(rng.standard_normal((2, 32), np.float32))
    packed, factor = pack_a(rng.standard_normal((3, 32), np.float32))
    x.d[1] = np.nan
    found = narrowed(compiled, x, packed, 3, factor, None)
    assert np.isfinite(found.scales[0]) and np.isnan(found.scales[1])


def test_an_input_with_what_is_made_of_it(compiled: Compiled, rng: np.random.Generator) -> None:
    """To the bit what the kernels make one after the other."""
    x, kind = rng.standard_normal((N_TOKENS, 96), np.float32), sums_for(BYTES)
    source = rows(x)
    quantized, made = compiled.quantize_for(x, [kind])
    found = {name: np.zeros_like(part) for name, part in {**quantized._asdict(), kind.field: made[kind]}.items()}
    to, of_batch = _record(records.QUANTIZED, **found), _record(records.BATCH, n_tokens=N_TOKENS)
    want, narrow, kept = [], None, []
    for rank, scales in ((8, None), (33, SCALES), (12, SCALES[::-1].copy())):
        packed, factor = pack_a(rng.standard_normal((rank, 96), np.float32))
        want.append((narrowed(compiled, quantized, packed, rank, factor, scales), out := Narrowed(N_TOKENS, rank)))
        fields = narrow_fields(to, 96, packed, rank, factor, scales, out) | {"chunk_tokens": 1}  # not those of the op
        kept += [fields, narrow]
        narrow = _record(low_rank_records.NARROW_INT8, batch=of_batch, **fields, next=0 if narrow is None else narrow)
    compiled._run(
        "quantize_adapted",
        records.QUANTIZE,
        -(-N_TOKENS // 2),
        N_TOKENS,
        x=source,
        stride=source.shape[1],
        n_cols=96,
        to=to,
        chunk_tokens=2,
        beside=narrow,
    )
    for name, part in quantized._asdict().items():
        np.testing.assert_array_equal(found[name], part)
    for expected, out in want:
        np.testing.assert_array_equal(out.memory, expected.memory)
        assert expected.numbers.any()


def widened(
    compiled: Compiled,
    y: np.ndarray,
    h: Narrowed,
    packed: np.ndarray,
    rank: int,
    scale: float,
    scales: np.ndarray | None,
    small: bool,
    in_place: bool,
) -> np.ndarray:
    with into(y, in_place) as (source, out):
        compiled._run(
            "widen_int8",
            low_rank_records.WIDEN_INT8,
            -(-y.shape[1] // 32),
            len(y),
            options={"small": small},
            **beside(source, out, y.shape[1], h, packed, rank, scale, scales),
        )
    return out.take()


def beside(
    y: Any, out: Output, n_cols: int, h: Narrowed, packed: np.ndarray, rank: int, scale: float, scales: Any
) -> dict[str, Any]:
    return {
        "y": y,
        "out": out,
        "stride": out.stride,
        "n_cols": n_cols,
        "h": h.memory,
        "h_stride": h.stride,
        "weight": before_a_wall(packed),
        "n_pieces": -(-rank // PIECE_ROWS),
        "tile_bytes": packed.shape[1],
        "rank": rank,
        "scale": scale,
        "scales": 0 if scales is None else scales,
        "chunk_tokens": 1 << 30,
        "chunk_cols": 32,
        "small_chunk_cols": 32,
    }


def rows_of_h(rng: np.random.Generator, rank: int) -> Narrowed:
    return Narrowed.of(rng.standard_normal((N_TOKENS, rank), np.float32))


@pytest.mark.parametrize("rank", RANKS)
def test_widen(compiled: Compiled, rng: np.random.Generator, rank: int) -> None:
    h, y = rows_of_h(rng, rank), rng.standard_normal((N_TOKENS, 72), np.float32)
    packed, factor = pack_b(rng.standard_normal((rank, 72), np.float32))
    product = h.dequantize()[:, :rank] @ unpacked_b(packed, factor, rank, 72)
    for scales in (None, SCALES):
        factors = 0.25 * (np.ones(N_TOKENS) if scales is None else scales)
        results = [
            widened(compiled, y, h, packed, rank, 0.25 * factor, scales, small, in_place)
            for small in (False, True)
            for in_place in (False, True)
        ]
        np.testing.assert_allclose(results[0], y + factors[:, None] * product, atol=SUM * 40)
        np.testing.assert_array_equal(results[0][factors == 0], y[factors == 0])
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_rank_of_the_largest_numbers(compiled: Compiled, sign: int) -> None:
    ones = np.ones((low_rank_records.MOST_RANK, 16), np.float32)
    packed, factor = pack_b(sign * ones)
    found = widened(
        compiled, np.zeros((1, 16), np.float32), Narrowed.of(ones[:, :1].T), packed, len(ones), factor, None, True, True
    )
    np.testing.assert_allclose(found, sign * len(ones), rtol=1e-3)


@pytest.mark.parametrize(
    ("compiled", "name"),
    [thorough_unless(isa is AVAILABLE[0] or name == "Q4_1", isa, name)
     for isa in DISTINCT for name in ("Q4_1", "Q6_K", "Q8_0")],
    ids=lambda x: getattr(x, "name", x),
    indirect=["compiled"],
)  # fmt: skip
def test_a_product_with_what_is_beside_it(compiled: Compiled, rng: np.random.Generator, name: str) -> None:
    """To the bit what the two make one after the other."""
    fmt, n_rows, n_cols, rank = FORMATS[name], 72, 256, 8
    weights = random_weights(fmt, n_rows, n_cols, rng)
    x, h = reference.quantize(rng.standard_normal((N_TOKENS, n_cols), np.float32)), rows_of_h(rng, rank)
    packed, factor = pack_b(rng.standard_normal((rank, n_rows), np.float32))
    product = compiled.linear(weights, fmt, x, "linear_tiles")
    for some in (slice(0, 1), slice(1, 2), slice(0, 2), slice(0, N_TOKENS)):
        n, scales = len(SCALES[some]), SCALES[some].copy()
        low = h.rows(some)
        want = widened(compiled, product[some], low, packed, rank, factor, scales, True, True)
        kind, capacity = sums_for(fmt), 16
        parts = {part: values[some] for part, values in {**x._asdict(), kind.field: x.sums(kind)}.items()}
        padded = {part: np.resize(values, (capacity, values.shape[1])) for part, values in parts.items()}
        for prefetch in range(len(PREFETCHES)):
            out = Output(n, n_rows)
            fields = beside(out, out, n_rows, low, packed, rank, factor, scales)  # whose arrays must stay
            of_batch, quantized = _record(records.BATCH, n_tokens=n), _record(records.QUANTIZED, **padded)
            more = _record(low_rank_records.WIDEN_INT8, batch=of_batch, **fields)
            compiled._run(
                "linear_tiles_adapted",
                records.LINEAR,
                -(-n_rows // 32),
                n,
                fmt,
                weights=before_a_wall(to_tiles(fmt, weights)),
                row_bytes=weights.shape[1],
                n_rows=n_rows,
                n_cols=n_cols,
                xq=quantized,
                out=out,
                out_stride=out.stride,
                chunk_rows=32,
                prefetch_distance=1 << 12,
                prefetch=prefetch,
                n_threads=2,
                beside=more,
            )
            np.testing.assert_array_equal(out.take(), want)
