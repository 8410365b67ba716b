"""Attention over a cache of floats: queries against the keys of a block, and its values weighed.

Keys stand by dimension and values by token: so a register holds one dimension of several keys, or several
dimensions of one value, and neither product needs sums across a register.
"""

from __future__ import annotations

from edgellm.kernels.kv_types import LANES, FloatKV
from edgellm.kernels.ops.attention_tiles import SPAN_ROW_BYTES, columns_of, prefetch_ahead, tiles
from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.staged import F32, Value, Vocabulary

KEYS_PART = 32  # tokens: keys of a block are read by so many, a cache line of a dimension where they are float16


def score(v: Vocabulary, query: Value, n_rows: Value, key_dim: Value, n_tokens: Value, keys: Value, following: Value,
          scores: Value, *, kind: FloatKV) -> None:  # fmt: skip
    """scores[r, token] = query[r] . keys[:, token] for the first n_tokens of a block, and some more.

    following:  what is needed next.
    """
    n_columns = columns_of(v.isa)
    width = n_columns * v.isa.lanes
    n_parts = (n_tokens + (KEYS_PART - 1)) / KEYS_PART

    def tile(row: Value, height: int) -> None:
        def some(first: Value, n_columns: int) -> None:
            _score_tile(v, kind, height, n_columns, query + row * key_dim * 4, key_dim, keys, following, first,
                        scores + row * SPAN_ROW_BYTES)  # fmt: skip

        n_wide = n_parts * KEYS_PART / width
        v.repeat(n_wide, lambda i: some(i * width, n_columns))
        if width > KEYS_PART:
            v.repeat(n_parts - n_wide * (width // KEYS_PART), lambda i: some(i * KEYS_PART, KEYS_PART // v.isa.lanes))

    tiles(v, n_rows, tile)


def _score_tile(v: Vocabulary, kind: FloatKV, n_rows: int, n_columns: int, query: Value, key_dim: Value, keys: Value,
                following: Value, first: Value, scores: Value) -> None:  # fmt: skip
    """A tile of rows by n_columns registers of tokens, from `first` on."""
    lanes = v.isa.lanes
    rows, columns = range(n_rows), range(n_columns)
    register_bytes = lanes * kind.number_bytes
    asked = following + first * key_dim * kind.number_bytes

    def dimension(i: Value, *sums: Value) -> list[Value]:
        at = keys + (i * KV_BLOCK + first) * kind.number_bytes
        prefetch_ahead(v, n_rows, asked + i * (n_columns * register_bytes), n_columns * register_bytes)
        key = [kind.load(v, at + c * register_bytes, lanes) for c in columns]
        x = [v.f32(query + (key_dim * r + i) * 4) for r in rows]
        return [v.fma(key[c], x[r], sums[n_columns * r + c]) for r in rows for c in columns]

    totals = iter(v.loop(key_dim, [v.constant(0.0, F32, lanes)] * (n_rows * n_columns), dimension))
    for r in rows:
        for c in columns:
            v.store(scores + (first + c * lanes) * 4 + r * SPAN_ROW_BYTES, next(totals))


def weigh(v: Vocabulary, weights: Value, n_rows: Value, value_dim: Value, begin: Value, end: Value, values: Value,
          following: Value, result: Value, *, kind: FloatKV) -> None:  # fmt: skip
    """sums[r] += weights[r, token] * values[token] for the tokens begin to end - 1 of a block.

    following:  what is needed next.
    """
    lanes = v.isa.lanes
    width = columns_of(v.isa) * lanes

    def tile(row: Value, height: int) -> None:
        own, to = weights + row * SPAN_ROW_BYTES, result + row * (value_dim + 2) * 4 + 8

        def some(start: Value, width: int) -> None:
            asked = following + start * (end - begin) * kind.number_bytes
            _weigh_tile(v, kind, height, own, begin, end, values + start * kind.number_bytes, asked, value_dim,
                        width // lanes, to + start * 4)  # fmt: skip

        n_wide = value_dim / width
        v.repeat(n_wide, lambda i: some(i * width, width))
        if width > LANES:
            rest = n_wide * width
            v.repeat((value_dim - rest) / LANES, lambda i: some(rest + i * LANES, LANES))

    tiles(v, n_rows, tile)


def _weigh_tile(v: Vocabulary, kind: FloatKV, n_rows: int, weights: Value, begin: Value, end: Value, values: Value,
                following: Value, value_dim: Value, n_parts: int, sums: Value) -> None:  # fmt: skip
    """A tile of rows by n_parts registers of dimensions, which `values` and `sums` point to."""
    lanes = v.isa.lanes
    part_bytes = n_parts * lanes * kind.number_bytes
    rows, parts = range(n_rows), range(n_parts)
    places = [sums + (value_dim + 2) * (4 * r) + c * lanes * 4 for r in rows for c in parts]

    def token(i: Value, *sums: Value) -> list[Value]:
        prefetch_ahead(v, n_rows, following + i * part_bytes, part_bytes)
        i = begin + i
        at = values + i * value_dim * kind.number_bytes
        value = [kind.load(v, at + c * lanes * kind.number_bytes, lanes) for c in parts]
        weight = [v.f32(weights + i * 4 + r * SPAN_ROW_BYTES) for r in rows]
        return [v.fma(value[c], weight[r], sums[n_parts * r + c]) for r in rows for c in parts]

    totals = v.loop(end - begin, [v.f32(place, lanes) for place in places], token)
    for place, total in zip(places, totals, strict=True):
        v.store(place, total)
