"""Tiles of queries, for attention to keys that stand in rows: a lane of a register is a query.

Scores lie transposed, a row for each key and a column for each query of a tile. So the keys are read as they are,
number by number, and softmax never looks across lanes.
"""

from __future__ import annotations

from edgellm.kernels.encoder_records import QUERY_TILE
from edgellm.kernels.ops.attention_merge import LOWEST
from edgellm.kernels.ops.linear import row_addresses
from edgellm.kernels.staged import F32, I32, Value, Vocabulary

MASKED = 2 * LOWEST  # less than LOWEST by so much that its exponential is always 0
TILE = QUERY_TILE
ROW_BYTES = 4 * TILE  # of what has a lane for every query of a tile
BLOCK = 8  # rows and columns that are transposed together
COLUMNS = 2  # registers of queries whose softmax is computed side by side


def transpose_tile(v: Vocabulary, x: Value, row_bytes: Value, n_rows: Value, n_cols: Value, out: Value) -> None:
    """out[column, row] = x[row, column] for a tile of rows; beyond n_rows, the last again."""

    def some(i: Value) -> None:
        rows = row_addresses(v, x, row_bytes, i * BLOCK, n_rows - 1, BLOCK)
        to = out + i * (4 * BLOCK)

        def block(j: Value) -> None:
            columns = v.transpose8([v.f32(row + j * (4 * BLOCK), BLOCK) for row in rows])
            for c, column in enumerate(columns):
                v.store(to + (j * BLOCK + c) * ROW_BYTES, column)

        def one(j: Value) -> None:
            column = n_cols / BLOCK * BLOCK + j
            v.store(to + column * ROW_BYTES, v.vector_of([v.f32(row + column * 4) for row in rows]))

        v.repeat(n_cols / BLOCK, block)
        v.repeat(n_cols - n_cols / BLOCK * BLOCK, one)

    v.repeat(v.like(TILE // BLOCK, n_rows), some)


def row_places(v: Vocabulary, rows: Value, key: Value) -> list[Value]:
    """Where the registers of a key are, for COLUMNS registers of queries."""
    return [rows + key * ROW_BYTES + c * v.isa.lanes * 4 for c in range(COLUMNS)]


def mask_scores(v: Vocabulary, scores: Value, n_keys: Value, distance: Value, window: Value, ahead: Value,
                scale: Value, slope: Value | None = None) -> list[Value]:  # fmt: skip
    """Products of keys and queries become scores: scaled, and so low for what a query must not see that it weighs 0.

    distance:  from the first key to the first query, in positions.
    slope:     what a score loses for each position between key and query (ALiBi; Press et al., 2021).

    Returns the largest score of each query.
    """
    lanes = v.isa.lanes
    columns = range(COLUMNS)
    masked = v.constant(MASKED, F32, lanes)
    queries = [v.constant(list(range(c * lanes, (c + 1) * lanes)), I32) for c in columns]
    n_seen = v.splat((window + ahead).trunc(I32), lanes)
    to_back = v.splat(ahead.trunc(I32), lanes)

    def mask(key: Value, *largest: Value) -> list[Value]:
        results = []
        from_key = v.splat((distance - key).trunc(I32), lanes)
        for at, query, most in zip(row_places(v, scores, key), queries, largest, strict=True):
            back = query + from_key
            # As unsigned numbers, those below 0 are large.
            is_seen = Value(v, v.builder.icmp_unsigned("<", (back + to_back).llvm, n_seen.llvm))
            score = v.f32(at, lanes) * scale
            if slope is not None:
                score = score - v.abs(back.to_f32()) * slope
            score = v.select(is_seen, score, masked)
            v.store(at, score)
            results.append(v.maximum(most, score))
        return results

    return v.loop(n_keys, [v.constant(LOWEST, F32, lanes) for _ in columns], mask)
