"""y = W x for every block format: what its kernels have in common, and the one for many tokens.

Those for few are in `linear_decode.py`, and in `linear_tiles.py` for weights that lie as tiles. Here weights are read
as the file holds them, and a tile of 16 rows is unpacked into scratch memory, once for all tokens.

Inputs are int8 in groups of 32 (see records.QUANTIZED), so that inside a group the sum is an exact integer; scales come
in afterwards as float32:

    sum(w * x) = sum over groups of  scale * d * sum(u * q)  +  bias * (d * sum(q))

For formats that store no minimum but have a zero point, the bias would be -scale * zero. So that part is an integer
too, -zero * sum(q), in which the sum of products begins (`group_sums`).

With two planes, an input is twice as long in int8: what rounding left over of the first is the second, in steps of a
256th (see records.QUANTIZED). Inside a group both sums are integers, so they are put together there, exactly, as one
of 16 bits would be: 256 * sum(u * q1) + sum(u * q2).

The sum over groups is made in one order, group after group, whichever kernel makes it: a lane holds a row,
never a part of one. So decode and prefill give the same bits, as do any number of threads and every
instruction set, and a text has the same logits in one batch or token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numba import njit

from edgellm.kernels.blocks import SETS, BlockReader, transpose_quarters
from edgellm.kernels.group_sums import sums_for
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.prefetching import next_tile, prefetch_part
from edgellm.kernels.records import LINEAR, PLANE_BITS, TILE_ROWS
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary, staged

GROUP = 32  # weights that share an activation scale
SIDE_BY_SIDE = 4  # tokens, as many as a sum waits cycles; more would take registers from weights and scales


def row_addresses(v: Vocabulary, weights: Value, row_bytes: Value, first: Value, last: Value, n: int) -> list[Value]:
    """Where n rows start, from `first` on; beyond the last row, the last again, whose results nobody reads."""
    return [weights + row_bytes * v.minimum(first + r, last) for r in range(n)]


def readers(v: Vocabulary, fmt, addresses: list[Value]) -> tuple[list[BlockReader], BlockReader]:
    """Of the blocks of some rows at the same place: those of each set, for weights, and of all rows, for scales."""
    size = fmt.block_bytes
    return [BlockReader(v, addresses[s::SETS], size) for s in range(SETS)], BlockReader(v, addresses, size)


def scales_by_row(v: Vocabulary, fmt, reader: BlockReader) -> tuple[list[Value], list[Value]]:
    """The scales of a block, each for all rows, and likewise the biases; no biases where there is a zero point."""
    n_rows = len(reader.addresses)

    def by_group(numbers: Value | None) -> list[Value]:
        return [] if numbers is None else [numbers[at : at + n_rows] for at in range(0, numbers.n, n_rows)]

    scales, biases = fmt.unpack_scales(v, reader)
    return by_group(scales), by_group(biases)


def sums_reader(fmt):
    """sums_of(op): where the numbers of each group are that weights of this format need (`group_sums`)."""
    field = sums_for(fmt).field

    @njit(error_model="numpy")
    def sums_of(op):
        return getattr(op.xq, field)

    return sums_of


def unpack_tile(
    v: Vocabulary,
    fmt,
    weights: Value,
    row_bytes: Value,
    first: Value,
    last: Value,
    n_groups: Value,
    tile: Value,
    lane: Value,
    ahead: Value,
) -> None:
    """Unpack as many rows as a register has lanes (none beyond last) into the lanes from `lane` on of the tile's.

    Meanwhile as many bytes are prefetched, from `ahead` on.
    """
    per_block, per_group = fmt.block_size // GROUP, GROUP // fmt.scale_group
    rows = row_addresses(v, weights, row_bytes, first, last, v.isa.lanes)
    unpacked = UnpackedTile(v, fmt, tile, n_groups)
    step_bytes = v.isa.lanes * fmt.block_bytes

    def body(i: Value) -> None:
        sets, all_rows = readers(v, fmt, [row + i * fmt.block_bytes for row in rows])
        scales, biases = scales_by_row(v, fmt, all_rows)
        for g in range(per_block):
            prefetch_part(v, ahead + i * step_bytes, step_bytes, g, per_block)
            halves = zip(*(v.halves(fmt.unpack(v, some, g).bitcast(I32)) for some in sets), strict=True)
            words = [word for half in halves for word in transpose_quarters(v, list(half))]
            some = slice(g * per_group, (g + 1) * per_group)
            unpacked.store(i * per_block + g, words, scales[some], biases[some], lane)

    v.repeat(n_groups / per_block, body)


@dataclass(frozen=True)
class Inputs:
    """Tokens as int8 (records.QUANTIZED), in groups: where the first one's bytes, scales and sums are."""

    fmt: Any
    n_planes: int
    n_groups: Value
    q: Value
    d: Value
    sums: Value

    def of_group(self, v: Vocabulary, group: Value, n_tokens: int) -> list[tuple[list[Value], Value, Value]]:
        """Where a group of each token is: the bytes of each plane, the scale, the sums."""
        n_planes = self.n_planes
        q = _evenly_spaced(v, self.q + group * GROUP, self.n_groups * GROUP, n_tokens * n_planes)
        scales = self.scales_of_group(v, group, n_tokens)
        return [(q[token * n_planes : (token + 1) * n_planes], d, sums) for token, (d, sums) in enumerate(scales)]

    def scales_of_group(self, v: Vocabulary, group: Value, n_tokens: int) -> list[tuple[Value, Value]]:
        """Where the scale and the sums of a group of each token are."""
        sums_bytes = 4 * GROUP // self.fmt.scale_group
        d = _evenly_spaced(v, self.d + group * 4, self.n_groups * 4, n_tokens)
        sums = _evenly_spaced(v, self.sums + group * sums_bytes, self.n_groups * sums_bytes, n_tokens)
        return list(zip(d, sums, strict=True))


def _evenly_spaced(v: Vocabulary, first: Value, step: Value, n: int) -> list[Value]:
    """n addresses, which the CPU adds up while it loads: every fourth, and from there steps that all of them share.

    The compiler would rather keep every one of them, for which there are not enough registers, and read most of them
    back from memory each time.
    """
    steps = [step * i for i in range(4)]
    return [v.opaque(first + step * i) + steps[k] for i in range(0, n, 4) for k in range(min(4, n - i))]


def meet_tokens(
    v: Vocabulary,
    fmt,
    words: list[Value],
    scales: list[Value],
    biases: list[Value],
    inputs: Inputs,
    group: Value,
    totals: Sequence[Value],
    before_word: Callable[[int], None] | None = None,
) -> list[Value]:
    """A group of weights of 16 rows by some tokens: added to the total of each.

    words: eight registers, each with four neighbouring weights of every row; scales and biases: one register for every
    `scale_group` weights, biases only of formats that have some. before_word: what is done beside, when the first
    tokens are about to meet each of the words.
    """
    n_words = len(words) // len(scales)
    results = list(totals)
    at_once = _tokens_side_by_side(v, len(results))
    all_places = inputs.of_group(v, group, len(results))
    for first in range(0, len(results), at_once):
        tokens = range(first, min(first + at_once, len(results)))
        places = all_places[first : first + at_once]
        for s in range(len(scales)):
            some = range(s * n_words, (s + 1) * n_words)
            planes, sums = [q for q, _, _ in places], [at + s * 4 for _, _, at in places]
            starts = [v.constant(0, I32, TILE_ROWS) if biases else correction(v, at, TILE_ROWS) for at in sums]
            dots = _dots_of_words(v, fmt, words, some, planes, starts, None if first else before_word)
            for i, (token, (_, d, _)) in enumerate(zip(tokens, places, strict=True)):
                results[token] = add_scaled(v, results[token], dots[i], scales[s], d)
                if biases:
                    results[token] = v.fma(biases[s], v.f32(sums[i]), results[token])
    return results


def correction(v: Vocabulary, at: Value, n: int) -> Value:
    """What the zero point of n weights takes from their integer sums."""
    return v.splat(v.load(at, I32), n)


def add_scaled(v: Vocabulary, total: Value, dot: Value, scale: Value, d: Value) -> Value:
    """Add to a token's total what its integer sums are worth: see the formula above."""
    return v.fma(dot.to_f32(), scale * v.f32(d), total)


def _tokens_side_by_side(v: Vocabulary, n_tokens: int) -> int:
    """So many have their products added in turns, for a sum waits some cycles for the last one: as registers allow."""
    width = max(1, TILE_ROWS // v.isa.lanes)  # registers of 16 sums
    return max(1, min(n_tokens, SIDE_BY_SIDE, v.isa.n_registers // width - n_tokens - 2))


def _dots_of_words(
    v: Vocabulary,
    fmt,
    words: list[Value],
    some: range,
    planes: list[list[Value]],
    starts: list[Value],
    before_word: Callable[[int], None] | None,
) -> list[Value]:
    """Some words of a group by each token's bytes, at its planes; of each token int32 sums, as of `join_planes`."""
    n_planes = len(planes[0])
    dots = starts if n_planes == 1 else [v.constant(0, I32, TILE_ROWS)] * len(planes)
    for p in range(n_planes):
        if p:
            dots = [(dot << PLANE_BITS) + start for dot, start in zip(dots, starts, strict=True)]
        for k in some:
            if before_word is not None and p == 0:
                before_word(k)
            for token, of_token in enumerate(planes):
                x = v.splat(v.u32(of_token[p] + k * 4), TILE_ROWS).bitcast(I8)
                dots[token] = v.dot_u8_s8(dots[token], words[k], x, fmt.max_u)
    return dots


class UnpackedTile:
    """16 rows of weights in scratch memory, as it was unpacked for tokens to meet it.

    For every group of 32 columns eight registers of 16 rows x 4 bytes, so that one multiply of bytes meets four columns
    of all 16 rows; behind those of all groups the scales and then the biases, if there are any, 16 rows side by side.
    """

    def __init__(self, v: Vocabulary, fmt, memory: Value, n_groups: Value) -> None:
        self.v, self.memory = v, memory
        self.per_group, self.has_biases = GROUP // fmt.scale_group, fmt.zero == 0
        self.scales_at = memory + n_groups * (TILE_ROWS * GROUP)
        self.biases_at = self.scales_at + n_groups * (self.per_group * TILE_ROWS * 4)

    def group(self, g: Value) -> tuple[list[Value], list[Value], list[Value]]:
        """The words of a group, its scales and its biases, as `meet_tokens` takes them."""
        v, words = self.v, self.memory + g * (TILE_ROWS * GROUP)
        scales, biases = self.scales_of(g)
        return [v.load(words + k * TILE_ROWS * 4, I8, TILE_ROWS * 4) for k in range(GROUP // 4)], scales, biases

    def scales_of(self, g: Value) -> tuple[list[Value], list[Value]]:
        """The scales of a group and its biases."""

        def numbers(first: Value) -> list[Value]:
            places = [first + (g * self.per_group + s) * (TILE_ROWS * 4) for s in range(self.per_group)]
            return [self.v.f32(at, TILE_ROWS) for at in places]

        return numbers(self.scales_at), numbers(self.biases_at) if self.has_biases else []

    def store(
        self, g: Value, words: Sequence[Value], scales: Sequence[Value], biases: Sequence[Value], lane: Value | int = 0
    ) -> None:
        """Put a group there; of fewer rows, each register into the lanes from `lane` on."""
        v, at = self.v, self.memory + g * (TILE_ROWS * GROUP) + lane * 4
        for k, word in enumerate(words):
            v.store(at + k * TILE_ROWS * 4, word)
        for first, numbers in ((self.scales_at, scales), (self.biases_at, biases)):
            for s, number in enumerate(numbers):
                v.store(first + (g * self.per_group + s) * (TILE_ROWS * 4) + lane * 4, number)


def multiply_tile(
    v: Vocabulary,
    fmt,
    n_planes: int,
    n_tokens: int,
    tile: Value,
    n_groups: Value,
    q: Value,
    d: Value,
    sums: Value,
    out: Value,
    out_stride: Value,
) -> None:
    """The 16 rows of an unpacked tile by n_tokens, with one register of 16 sums for each."""
    unpacked, inputs = UnpackedTile(v, fmt, tile, n_groups), Inputs(fmt, n_planes, n_groups, q, d, sums)

    def body(g: Value, *totals: Value) -> list[Value]:
        return meet_tokens(v, fmt, *unpacked.group(g), inputs, g, totals)

    totals = v.loop(n_groups, [v.constant(0.0, F32, TILE_ROWS)] * n_tokens, body)
    for token, total in enumerate(totals):
        v.store(out + out_stride * (4 * token), total)


def tile_multiplier(isa, fmt, n_planes: int):
    """multiply(op, tile, first): the 16 rows from `first` on, unpacked in `tile`, by all tokens."""
    per_sum, at_once, sums_of = fmt.scale_group, isa.tile_tokens, sums_reader(fmt)

    @staged(isa, "void", *["i64"] * 7)
    def tile_by_tokens(v, *args):
        multiply_tile(v, fmt, n_planes, at_once, *args)

    @njit(error_model="numpy")
    def multiply(op, tile, first):
        n_cols = op.n_cols
        sums = sums_of(op)
        # The last tokens may reach beyond the batch: the buffers are that long, and nobody reads those rows.
        for token in range(0, op.batch.n_tokens, at_once):
            tile_by_tokens(
                tile,
                op.n_cols // 32,
                op.xq.q + token * n_cols * n_planes,
                op.xq.d + token * (n_cols // 32) * 4,
                sums + token * (n_cols // per_sum) * 4,
                op.out + (token * op.out_stride + first) * 4,
                op.out_stride,
            )

    return multiply


def rows_unpacker(isa, fmt):
    """unpack(op, weights, first, tile, ahead): 16 rows as `UnpackedTile` has them; 16 others are prefetched."""
    n_rows = isa.lanes

    @staged(isa, "void", *["i64"] * 8)
    def unpack_rows(v, *args):
        unpack_tile(v, fmt, *args)

    @njit(error_model="numpy")
    def unpack(op, weights, first, tile, ahead):
        for lane in range(0, 16, n_rows):
            asked = ahead + lane * op.row_bytes
            unpack_rows(weights, op.row_bytes, first + lane, op.n_rows - 1, op.n_cols // 32, tile, lane, asked)

    return unpack


def prefill_kernel(isa, fmt, n_planes: int, unpack):
    """The kernel for many tokens; `unpack` as `rows_unpacker` makes it."""
    op_at, multiply = record_viewer(LINEAR), tile_multiplier(isa, fmt, n_planes)

    def linear_prefill(record, chunk, thread):
        op = op_at(record)
        tile = op.scratch + thread * op.scratch_bytes
        unpack(op, op.weights, chunk * 16, tile, next_tile(op, chunk))
        multiply(op, tile, chunk * 16)

    return linear_prefill


def build_linear_prefill(isa, fmt, n_planes=1):
    """W [n_rows, n_cols] by many tokens; chunk c is the rows from 16 c on."""
    return prefill_kernel(isa, fmt, n_planes, rows_unpacker(isa, fmt))
