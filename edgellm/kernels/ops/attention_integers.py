"""Attention over a cache of integers: queries against the keys of a block, and its values weighed.

What meets them is rounded to 15 bits and a sign, so that all products and their sums are those of integers, in pairs
(`v.dot_pairs`): of two dimensions of a key, of a dimension of two values. A query is rounded once for all keys. Weights
are rounded for every block and group of dimensions, together with the scales of the values.

Sums over a group of a key, or over all values of a block, are exact; each then is one fused multiply-add in float32.
"""

from __future__ import annotations

from edgellm.kernels.kv_types import LANES, SCALE_BYTES, SCALE_GROUP, UNIT_BYTES, IntegerKV
from edgellm.kernels.ops.attention_tiles import SPAN_ROW_BYTES, prefetch_ahead, tiles
from edgellm.kernels.ops.rounding import as_magnitudes, round_row, scale_and_inverse
from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.staged import F32, I16, I32, Value, Vocabulary

MOST = 32767.0
LEAST = 1e-30  # of what is smaller, the inverse would be too large: all becomes 0
ROUNDED_BYTES = 4 * KV_BLOCK  # of a row's rounded weights in scratch memory, their scale included
UNROLLED = 4


def round_query(v: Vocabulary, x: Value, key_dim: Value, out: Value) -> None:
    """float32 [key_dim] at x as int16 at out, with the scale behind them."""
    round_row(v, x, key_dim / LANES, LANES, MOST, LEAST, out, out + key_dim * 2)


def columns_of_integers(v: Vocabulary, n_rows: int) -> int:
    """Registers of keys side by side: each has a sum of integers and a total, for every row."""
    most = 3 * v.isa.n_registers // 4 // (2 * n_rows)
    return max(c for c in (1, 2, 4) if c <= most and c * v.isa.lanes <= KV_BLOCK)


def score(v: Vocabulary, query: Value, n_rows: Value, key_dim: Value, n_tokens: Value, keys: Value, following: Value,
          scores: Value, *, kind: IntegerKV) -> None:  # fmt: skip
    """scores[r, token] = query[r] . keys[:, token] for the first n_tokens of a block, and some more.

    following:  what is needed next.
    """
    ahead = following - keys

    def tile(row: Value, height: int) -> None:
        width = columns_of_integers(v, height) * v.isa.lanes

        def columns(i: Value) -> None:
            _score_tile(v, kind, height, query + row * key_dim * 4, key_dim, keys, ahead, i * width,
                        scores + row * SPAN_ROW_BYTES)  # fmt: skip

        v.repeat((n_tokens + (width - 1)) / width, columns)

    tiles(v, n_rows, tile)


def _score_tile(v: Vocabulary, kind: IntegerKV, n_rows: int, query: Value, key_dim: Value, keys: Value, ahead: Value,
                first: Value, scores: Value) -> None:  # fmt: skip
    """A tile of rows by some registers of tokens, from `first` on."""
    lanes, n_columns = v.isa.lanes, columns_of_integers(v, n_rows)
    rows, columns = range(n_rows), range(n_columns)
    places = [(r, c) for r in rows for c in columns]
    row_bytes = KV_BLOCK * UNIT_BYTES
    n_units = key_dim / 2
    scales = keys + n_units * row_bytes
    per_group = SCALE_GROUP // 2

    def group(g: Value, *totals: Value) -> list[Value]:
        start = g * per_group

        def some(i: Value, *sums: Value) -> list[Value]:
            total = list(sums)
            for step in range(UNROLLED):
                unit = start + i * UNROLLED + step
                at = keys + unit * row_bytes + first * UNIT_BYTES
                prefetch_ahead(v, n_rows, at + ahead, n_columns * lanes * UNIT_BYTES)
                key = [kind.pairs(v, at + c * lanes * UNIT_BYTES, lanes)[0] for c in columns]
                x = [v.load(query + unit * 4 + key_dim * (4 * r), I16, 2) for r in rows]
                total = [v.dot_pairs(total[j], key[c], x[r]) for j, (r, c) in enumerate(places)]
            return total

        n = v.minimum(v.like(per_group, g), n_units - start) / UNROLLED
        sums = v.loop(n, [v.constant(0, I32, lanes)] * len(places), some)
        scales_at = scales + (g * KV_BLOCK + first) * SCALE_BYTES
        scale = [v.half(scales_at + c * lanes * SCALE_BYTES, lanes) for c in columns]
        return [v.fma(sums[j].to_f32(), scale[c], totals[j]) for j, (_, c) in enumerate(places)]

    n_groups = (key_dim + (SCALE_GROUP - 1)) / SCALE_GROUP
    totals = v.loop(n_groups, [v.constant(0.0, F32, lanes)] * len(places), group)
    for (r, c), total in zip(places, totals, strict=True):
        by = v.f32(query + key_dim * (4 * r + 2))
        v.store(scores + first * 4 + (r * SPAN_ROW_BYTES + c * lanes * 4), total * by)


def weigh(v: Vocabulary, weights: Value, n_rows: Value, value_dim: Value, values: Value, following: Value,
          result: Value, rounded: Value, *, kind: IntegerKV) -> None:  # fmt: skip
    """sums[r] += weights[r, token] * values[token] for the tokens of a block; a weight of 0 stands for no value at all.

    following:  what is needed next. rounded: memory for the rounded weights of a tile.
    """
    ahead = following - values
    n_units = value_dim / kind.n_parts
    per_group = SCALE_GROUP // kind.n_parts
    scales = values + n_units * (KV_BLOCK // 2 * UNIT_BYTES)

    def tile(row: Value, height: int) -> None:
        to = result + row * (value_dim + 2) * 4 + 8

        def group(g: Value) -> None:
            scales_at = scales + g * (KV_BLOCK * SCALE_BYTES)
            for r in range(height):
                own = weights + (row + r) * SPAN_ROW_BYTES
                _round_weights(v, own, scales_at, rounded + r * ROUNDED_BYTES)

            def some(i: Value, n_loads: int) -> None:
                unit = g * per_group + i
                sums = to + (g * SCALE_GROUP + i) * 4
                _weigh_tile(v, kind, height, rounded, values + unit * UNIT_BYTES, n_units, ahead, n_loads,
                            sums, value_dim)  # fmt: skip

            lanes = v.isa.lanes
            n_loads = min(max(1, 2 // kind.n_parts), per_group // lanes)
            n = v.minimum(v.like(per_group, g), n_units - g * per_group)
            wide = n / (n_loads * lanes)
            v.repeat(wide, lambda i: some(i * (n_loads * lanes), n_loads))
            if n_loads * lanes > LANES:
                v.repeat((n - wide * (n_loads * lanes)) / lanes, lambda i: some(i * lanes, 1))

        v.repeat((value_dim + (SCALE_GROUP - 1)) / SCALE_GROUP, group)

    tiles(v, n_rows, tile)


def _round_weights(v: Vocabulary, weights: Value, scales: Value, out: Value) -> None:
    """A row's weights for a block, times the scales of its tokens, as int16 at out, with their scale behind them."""
    lanes = v.isa.lanes
    zero = v.constant(0.0, F32, lanes)
    tokens = range(0, KV_BLOCK, lanes)
    products = []
    largest = v.constant(0, I32, lanes)
    for token in tokens:
        weight = v.f32(weights + token * 4, lanes)
        # What is not seen has a weight of 0, and any scale.
        product = v.select(v.greater(weight, zero), weight * v.half(scales + token * SCALE_BYTES, lanes), zero)
        largest = v.maximum(largest, as_magnitudes(v, product))
        products.append(product)
    scale, inverse = scale_and_inverse(v, largest, MOST, LEAST)
    for token, product in zip(tokens, products, strict=True):
        v.store(out + token * 2, v.round_to_i32(product * inverse).trunc(I16))
    v.store(out + KV_BLOCK * 2, scale)


def _weigh_tile(v: Vocabulary, kind: IntegerKV, n_rows: int, rounded: Value, values: Value, n_units: Value,
                ahead: Value, n_loads: int, sums: Value, value_dim: Value) -> None:  # fmt: skip
    """A tile of rows by n_loads registers of units, which `values` points to; their sums begin at `sums`."""
    lanes = v.isa.lanes
    rows = range(n_rows)
    columns = [(load, part) for load in range(n_loads) for part in range(kind.n_parts)]
    places = [(r, c) for r in rows for c in range(len(columns))]
    # Integers may be added in any order: more sums are more that can be added at once.
    n_sets = 2 if 2 * len(places) <= v.isa.n_registers // 2 else 1

    def some(i: Value, *totals: Value) -> list[Value]:
        result = list(totals)
        for step in range(2):
            pair = i * 2 + step
            at = values + pair * n_units * UNIT_BYTES
            prefetch_ahead(v, n_rows, at + ahead, n_loads * lanes * UNIT_BYTES)
            loaded = [kind.pairs(v, at + load * lanes * UNIT_BYTES, lanes) for load in range(n_loads)]
            weight = [v.load(rounded + pair * 4 + r * ROUNDED_BYTES, I16, 2) for r in rows]
            base = step % n_sets * len(places)
            for j, (r, c) in enumerate(places):
                load, part = columns[c]
                result[base + j] = v.dot_pairs(result[base + j], loaded[load][part], weight[r])
        return result

    n_pairs = v.like(KV_BLOCK // 4, value_dim)
    totals = v.loop(n_pairs, [v.constant(0, I32, lanes)] * (n_sets * len(places)), some)
    for j, (r, c) in enumerate(places):
        total = totals[j] if n_sets == 1 else totals[j] + totals[len(places) + j]
        load, part = columns[c]
        at = sums + (value_dim + 2) * (4 * r) + (load * lanes + part * (SCALE_GROUP // 2)) * 4
        by = v.f32(rounded + (r * ROUNDED_BYTES + KV_BLOCK * 2))
        v.store(at, v.fma(total.to_f32(), by, v.f32(at, lanes)))
