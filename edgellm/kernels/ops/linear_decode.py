"""y = W x for few tokens, with weights as the file holds them: a dot product for every row (see `linear.py`)."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

from edgellm.kernels.blocks import by_quarters
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear import readers, scales_by_row, sums_reader
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.prefetching import prefetch_address, prefetch_part
from edgellm.kernels.ops.tile_products import GROUP, as_multiplied, correction, is_corrected
from edgellm.kernels.records import LINEAR, PLANE_BITS
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary, staged

HALF = GROUP // 2


def multiply_rows(
    v: Vocabulary,
    fmt,
    n_planes: int,
    first: Value,
    row_bytes: Value,
    n_blocks: Value,
    q: Value,
    d: Value,
    sums: Value,
    ahead: Value,
    out: Value,
) -> None:
    """As many rows as a register has lanes, the first at an address and the others row_bytes apart, by one token.

    So many addresses have no room in registers. Those of every fourth row have, and from there it is the same way to
    the next three of each: the CPU adds that while it loads. The compiler would rather add it before the loop.
    """
    n_rows = v.isa.lanes
    fours = [first + row_bytes * r for r in range(0, n_rows, 4)]
    strides = [row_bytes * r for r in range(4)]
    per_block = fmt.block_size // GROUP
    per_group = GROUP // fmt.scale_group
    step_bytes = n_rows * fmt.block_bytes
    n_groups = n_blocks * per_block
    planes = [q + n_groups * (GROUP * p) for p in range(n_planes)]

    def body(i: Value, total: Value) -> list[Value]:
        here = [v.opaque(rows + i * fmt.block_bytes) for rows in fours]
        sets, all_rows = readers(v, fmt, [rows + stride for rows in here for stride in strides])
        scales, biases = scales_by_row(v, fmt, all_rows)
        for g in range(per_block):
            group = i * per_block + g

            def ask(index: int, g: int = g) -> None:
                part, n_parts = g * len(sets) + index, per_block * len(sets)
                prefetch_part(v, ahead + i * step_bytes, step_bytes, part, n_parts, level=1)

            weights_of_sets = [v.halves(as_multiplied(v, fmt, fmt.unpack(v, some, g))) for some in sets]
            x_scale = v.f32(d + group * 4)
            dots = _dots(v, fmt, weights_of_sets, [plane + group * GROUP for plane in planes], ask)
            for s, of_rows in enumerate(dots):
                at, sums_at = g * per_group + s, sums + (group * per_group + s) * 4
                if is_corrected(v, fmt):
                    of_rows = of_rows + correction(v, sums_at, n_rows)
                total = v.fma(of_rows.to_f32(), scales[at] * x_scale, total)
                if biases:
                    total = v.fma(biases[at], v.f32(sums_at), total)
        return [total]

    (total,) = v.loop(n_blocks, [v.constant(0.0, F32, n_rows)], body)
    v.store(out, total)


def _dots(
    v: Vocabulary, fmt, weights: list[tuple[Value, Value]], planes: list[Value], before_set: Callable[[int], None]
) -> list[Value]:
    """A group of weights of every row by the int8 of every plane, for each scale: int32 sums in the order of rows.

    before_set:  what is done beside, before each of the sets of rows.
    """
    (first, _), *_ = weights
    xs = [[v.tile(v.load(q + at, I8, HALF), first.n // HALF) for at in (0, HALF)] for q in planes]
    halves = [(0, 1)] if fmt.scale_group == GROUP else [(0,), (1,)]

    def products(index: int, us: tuple[Value, Value]) -> list[Value]:
        before_set(index)
        return [join_planes(v, fmt, [us[h] for h in some], [[x[h] for h in some] for x in xs]) for some in halves]

    sets = [products(index, us) for index, us in enumerate(weights)]
    return [_sum_quarters(v, list(of_sets)) for of_sets in zip(*sets, strict=True)]


def join_planes(v: Vocabulary, fmt, us: list[Value], planes: list[list[Value]]) -> Value:
    """Sums of the products of the u with the bytes of each plane, put together as integers."""
    total = v.constant(0, I32, us[0].n // 4)
    for p, xs in enumerate(planes):
        dots = v.byte_sum(total << PLANE_BITS if p else total, fmt)
        for u, x in zip(us, xs, strict=True):
            dots.add(u, x)
        total = dots.total()
    return total


def _sum_quarters(v: Vocabulary, sets: list[Value]) -> Value:
    """The sums of all quarters of int32 registers, one for each set; in the order of rows."""

    def fold(a: Value, b: Value, some: list[int], others: list[int]) -> Value:
        return by_quarters(v, a, b, some) + by_quarters(v, a, b, others)

    # Single instructions on every CPU.
    a, b = (fold(sets[s], sets[s + 1], [0, 4, 1, 5], [2, 6, 3, 7]) for s in (0, 2))
    return fold(a, b, [0, 1, 4, 5], [2, 3, 6, 7])


def rows_finder(isa):
    """rows_at(op, weights, row, spare): where as many rows as `multiply_rows` takes can be read, from `row` on.

    Behind the last row memory may end, so if there are fewer, they are copied to spare memory.
    """
    n, copy = isa.lanes, memory(isa).copy_bytes

    @njit(error_model="numpy")
    def rows_at(op, weights, row, spare):
        address = weights + row * op.row_bytes
        if row + n <= op.n_rows:
            return address
        copy(address, spare, (op.n_rows - row) * op.row_bytes)
        return spare

    return rows_at


def build_linear_decode(isa, fmt, n_planes=1):
    """W [n_rows, n_cols] by few tokens: reads the weights once, as fast as memory gives them."""
    op_at = record_viewer(LINEAR)
    per_sum, per_block, n_rows, sums_of = fmt.scale_group, fmt.block_size, isa.lanes, sums_reader(fmt)

    rows_at = rows_finder(isa)

    @staged(isa, "void", *["i64"] * 8)
    def dot_rows(v, *args):
        multiply_rows(v, fmt, n_planes, *args)

    def linear_decode(record, chunk, thread):
        op = op_at(record)
        n_cols = op.n_cols
        sums = sums_of(op)
        first = chunk * op.chunk_rows
        for row in range(first, min(first + op.chunk_rows, op.n_rows), n_rows):
            ahead = prefetch_address(op, chunk, thread, row)
            weights = rows_at(op, op.weights, row, op.scratch + thread * op.scratch_bytes)
            for token in range(op.batch.n_tokens):
                dot_rows(
                    weights,
                    op.row_bytes,
                    op.n_cols // per_block,
                    op.xq.q + token * n_cols * n_planes,
                    op.xq.d + token * (n_cols // 32) * 4,
                    sums + token * (n_cols // per_sum) * 4,
                    ahead,
                    op.out + (token * op.out_stride + row) * 4,
                )

    return linear_decode
