"""Queries against the keys of a full block that are stored channel by channel (`kv_types.ChannelKeys`).

number = minimum + scale * q, and both belong to a channel of the block: so a query takes the scales of the block on,
before it meets the integers, and what it makes of the minima is the same for all tokens:

    query . key = sum of (query * scale) * q  +  query . minimum

The first is rounded to 15 bits and a sign for every block, and its products and their sums are those of integers.
The first key of a block stands there as it was, and meets the query as it is.
"""

from __future__ import annotations

from edgellm.kernels.kv_types import LANES, UNIT_BYTES, ChannelKeys
from edgellm.kernels.ops.attention_integers import LEAST, MOST, UNROLLED, columns_of_integers
from edgellm.kernels.ops.attention_tiles import SPAN_ROW_BYTES, prefetch_ahead, tiles
from edgellm.kernels.ops.rounding import as_magnitudes, scale_and_inverse, store_int16
from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.staged import F32, I16, I32, Value, Vocabulary

UNIT_DIMS = 4


def score(v: Vocabulary, query: Value, n_rows: Value, key_dim: Value, n_tokens: Value, keys: Value, following: Value,
          scores: Value, spare: Value, *, kind: ChannelKeys) -> None:  # fmt: skip
    """scores[r, token] = query[r] . keys[:, token] for the first n_tokens of a block, and some more.

    query: float32. following: what is needed next. spare: memory for the queries of a tile, key_dim numbers each.
    """
    ahead = following - keys
    channels = keys + key_dim * kind.channels_at(1)

    def tile(row: Value, height: int) -> None:
        width = columns_of_integers(v, height) * v.isa.lanes
        own = scores + row * SPAN_ROW_BYTES
        firsts = [
            _take_scales(v, query + (row + r) * key_dim * 4, key_dim, channels, spare + key_dim * (4 * r))
            for r in range(height)
        ]

        def columns(i: Value) -> None:
            _score_tile(v, height, spare, key_dim, keys, ahead, i * width, own)

        v.repeat((n_tokens + (width - 1)) / width, columns)
        for r, first in enumerate(firsts):
            v.store(own + r * SPAN_ROW_BYTES, first)

    tiles(v, n_rows, tile)


def _take_scales(v: Vocabulary, query: Value, key_dim: Value, channels: Value, out: Value) -> Value:
    """A query times the scales of a block, as int16 [key_dim] at out; behind it their scale, and what all scores share.

    Returns the score of the first key.
    """
    zero = v.constant(0.0, F32, LANES)

    def some(i: Value, largest: Value, common: Value, first: Value) -> list[Value]:
        x, at = v.f32(query + i * (4 * LANES), LANES), channels + i * (2 * LANES)
        product = x * v.half(at, LANES)
        v.store(out + i * (4 * LANES), product)
        return [
            v.maximum(largest, as_magnitudes(v, product)),
            v.fma(x, v.half(at + key_dim * 2, LANES), common),
            v.fma(x, v.half(at + key_dim * 4, LANES), first),
        ]

    n = key_dim / LANES
    largest, common, first = v.loop(n, [v.constant(0, I32, LANES), zero, zero], some)
    scale, inverse = scale_and_inverse(v, largest, MOST, LEAST)
    store_int16(v, out, n, LANES, inverse, out)
    v.store(out + key_dim * 2, scale)
    v.store(out + key_dim * 2 + 4, _sum(v, common))
    return _sum(v, first)


def _sum(v: Vocabulary, x: Value) -> Value:
    return v.folded(x, lambda a, b: a + b)


def _score_tile(v: Vocabulary, n_rows: int, query: Value, key_dim: Value, keys: Value, ahead: Value, first: Value,
                scores: Value) -> None:  # fmt: skip
    """A tile of rows by some registers of tokens, from `first` on."""
    lanes, n_columns = v.isa.lanes, columns_of_integers(v, n_rows)
    rows, columns = range(n_rows), range(n_columns)
    places = [(r, c) for r in rows for c in columns]

    def some(i: Value, *sums: Value) -> list[Value]:
        total = list(sums)
        for step in range(UNROLLED):
            unit = i * UNROLLED + step
            at = keys + (unit * KV_BLOCK + first) * UNIT_BYTES
            prefetch_ahead(v, n_rows, at + ahead, n_columns * lanes * UNIT_BYTES)
            two = [v.u8(at + c * lanes * UNIT_BYTES, UNIT_BYTES * lanes) for c in columns]
            for part, shift in enumerate((0, 4)):
                pairs = [((one >> shift) & 15).zext(I16) for one in two]
                dims = query + unit * (2 * UNIT_DIMS) + 4 * part
                x = [v.load(dims + key_dim * (4 * r), I16, 2) for r in rows]
                total = [v.dot_pairs(total[j], pairs[c], x[r]) for j, (r, c) in enumerate(places)]
        return total

    n = key_dim / (UNIT_DIMS * UNROLLED)
    totals = v.loop(n, [v.constant(0, I32, lanes)] * len(places), some)
    for (r, c), total in zip(places, totals, strict=True):
        of_row = query + key_dim * (4 * r + 2)
        by, common = v.f32(of_row), v.f32(of_row + 4)
        at = scores + first * 4 + (r * SPAN_ROW_BYTES + c * lanes * 4)
        v.store(at, v.fma(total.to_f32(), by, v.splat(common, lanes)))
