"""Attention over a cache of floats: queries against the keys of a block, and its values weighed.

Keys stand by dimension and values by token: so a register holds one dimension of several keys, or several
dimensions of one value, and neither product needs sums across a register.
"""

from __future__ import annotations

from edgellm.kernels.kv_types import LANES, FloatKV
from edgellm.kernels.ops.attention_tiles import SPAN_ROW_BYTES, columns_of, prefetch_ahead, tiles
from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.staged import F32, Value, Vocabulary


def score(v: Vocabulary, query: Value, n_rows: Value, key_dim: Value, keys: Value, ahead: Value, scores: Value, *,
          kind: FloatKV) -> None:  # fmt: skip
    """scores[r, token] = query[r] . keys[:, token] for the tokens of a block.

    ahead:  from this block to the one that is needed next, in bytes.
    """

    def tile(row: Value, height: int) -> None:
        for first in range(0, KV_BLOCK, columns_of(v.isa) * v.isa.lanes):
            _score_tile(v, kind, height, query + row * key_dim * 4, key_dim, keys, ahead, first,
                        scores + row * SPAN_ROW_BYTES)  # fmt: skip

    tiles(v, n_rows, tile)


def _score_tile(v: Vocabulary, kind: FloatKV, n_rows: int, query: Value, key_dim: Value, keys: Value, ahead: Value,
                first: int, scores: Value) -> None:  # fmt: skip
    """A tile of rows by some registers of tokens, from `first` on."""
    lanes = v.isa.lanes
    tokens = [first + lanes * c for c in range(columns_of(v.isa))]
    rows = range(n_rows)
    dimension_bytes = KV_BLOCK * kind.number_bytes

    def dimension(i: Value, *sums: Value) -> list[Value]:
        at = keys + i * dimension_bytes
        if first == 0:
            prefetch_ahead(v, n_rows, at + ahead, dimension_bytes)
        key = [kind.load(v, at + token * kind.number_bytes, lanes) for token in tokens]
        x = [v.f32(query + (key_dim * r + i) * 4) for r in rows]
        return [v.fma(key[c], x[r], sums[len(key) * r + c]) for r in rows for c in range(len(key))]

    totals = iter(v.loop(key_dim, [v.constant(0.0, F32, lanes)] * (n_rows * len(tokens)), dimension))
    for r in rows:
        for token in tokens:
            v.store(scores + (r * SPAN_ROW_BYTES + token * 4), next(totals))


def weigh(v: Vocabulary, weights: Value, n_rows: Value, value_dim: Value, begin: Value, end: Value, values: Value,
          ahead: Value, result: Value, *, kind: FloatKV) -> None:  # fmt: skip
    """sums[r] += weights[r, token] * values[token] for the tokens begin to end - 1 of a block."""
    lanes = v.isa.lanes
    width = columns_of(v.isa) * lanes

    def tile(row: Value, height: int) -> None:
        own, to = weights + row * SPAN_ROW_BYTES, result + row * (value_dim + 2) * 4 + 8

        def some(start: Value, width: int) -> None:
            _weigh_tile(v, kind, height, own, begin, end, values + start * kind.number_bytes, ahead, value_dim,
                        width // lanes, to + start * 4)  # fmt: skip

        n_wide = value_dim / width
        v.repeat(n_wide, lambda i: some(i * width, width))
        if width > LANES:
            rest = n_wide * width
            v.repeat((value_dim - rest) / LANES, lambda i: some(rest + i * LANES, LANES))

    tiles(v, n_rows, tile)


def _weigh_tile(v: Vocabulary, kind: FloatKV, n_rows: int, weights: Value, begin: Value, end: Value, values: Value,
                ahead: Value, value_dim: Value, n_parts: int, sums: Value) -> None:  # fmt: skip
    """A tile of rows by n_parts registers of dimensions, which `values` and `sums` point to."""
    lanes = v.isa.lanes
    rows, parts = range(n_rows), range(n_parts)
    places = [sums + (value_dim + 2) * (4 * r) + c * lanes * 4 for r in rows for c in parts]

    def token(i: Value, *sums: Value) -> list[Value]:
        i = begin + i
        at = values + i * value_dim * kind.number_bytes
        prefetch_ahead(v, n_rows, at + ahead, n_parts * lanes * kind.number_bytes)
        value = [kind.load(v, at + c * lanes * kind.number_bytes, lanes) for c in parts]
        weight = [v.f32(weights + i * 4 + r * SPAN_ROW_BYTES) for r in rows]
        return [v.fma(value[c], weight[r], sums[n_parts * r + c]) for r in rows for c in parts]

    totals = v.loop(end - begin, [v.f32(place, lanes) for place in places], token)
    for place, total in zip(places, totals, strict=True):
        v.store(place, total)
