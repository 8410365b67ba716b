"""The innermost loop of linear layers: a group of weights of 16 rows, or of several times 16, meets some tokens.

What is loaded most are the inputs, four bytes of a token for all rows. Where registers have room for the sums of two
tiles of rows, they are loaded once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from edgellm.kernels.byte_sums import ByteSum
from edgellm.kernels.records import PLANE_BITS, TILE_ROWS
from edgellm.kernels.staged import I8, I32, Value, Vocabulary
from edgellm.kernels.tile_words import Registers

GROUP = 32  # weights that share an activation scale
SIDE_BY_SIDE = 8  # sums, twice as many as one waits cycles; more would take registers from weights and scales


class Place(NamedTuple):
    """Where a group of a token is: the bytes of each plane, the scale, the sums."""

    planes: list[Value]
    d: Value
    sums: Value


@dataclass(frozen=True)
class Inputs:
    """Tokens as int8 (records.QUANTIZED), in groups: where the first one's bytes, scales and sums are."""

    fmt: Any
    n_planes: int
    n_groups: Value
    q: Value
    d: Value
    sums: Value

    def places(self, v: Vocabulary, first: Value, n_tokens: int, n_groups: int = 1) -> list[list[Place]]:
        """Of some groups, from the first on: where each token's is.

        Addresses are written so that the CPU adds them up while it loads: of every fourth token one, and from there
        steps that scales, sums and bytes share, once, twice or eight times. The compiler would rather keep all of
        them, for which there are not enough registers, and read most of them back from memory each time.
        """
        steps = [v.opaque(self.n_groups * (4 * k)) for k in range(1, 4)]

        def evenly_spaced(start: Value, times: int, n: int) -> list[Value]:
            fours = [v.opaque(start + self.n_groups * (4 * times * i)) for i in range(0, n, 4)]
            return [fours[i // 4] + steps[i % 4 - 1] * times if i % 4 else fours[i // 4] for i in range(n)]

        n_planes, per_group = self.n_planes, GROUP // self.fmt.scale_group
        q = evenly_spaced(self.q + first * GROUP, GROUP // 4, n_tokens * n_planes)
        d = evenly_spaced(self.d + first * 4, 1, n_tokens)
        sums = evenly_spaced(self.sums + first * (4 * per_group), per_group, n_tokens)

        def of_token(t: int, g: int) -> Place:
            planes = [plane + g * GROUP for plane in q[t * n_planes : (t + 1) * n_planes]]
            return Place(planes, d[t] + g * 4, sums[t] + g * 4 * per_group)

        return [[of_token(t, g) for t in range(n_tokens)] for g in range(n_groups)]


class GroupOfRows(NamedTuple):
    """A group of weights of 16 rows.

    words:   eight registers, each with four neighbouring weights of every row; made when they are asked for.
    scales:  a register for every `scale_group` weights. biases: likewise, and none of formats with a zero point.
    """

    words: Sequence[Value]
    scales: Sequence[Value]
    biases: Sequence[Value]

    def itself(self) -> GroupOfRows:
        return self


def meet_tokens(
    v: Vocabulary,
    fmt,
    tiles: Sequence[Callable[[], GroupOfRows]],
    places: Sequence[Place],
    totals: Sequence[Value],
    before_word: Callable[[int], None] | None = None,
) -> list[Value]:
    """A group of weights of some tiles by some tokens, added to the totals: of all tiles for one token after the other.

    places: where the tokens' group is. tiles: called for as many tokens as meet weights side by side. before_word: what
    is done beside, when the first tokens are about to meet each of the words.
    """
    n_tiles, results = len(tiles), list(totals)
    at_once = _tokens_side_by_side(v, places, n_tiles)
    for first in range(0, len(places), at_once):
        weights, some = [tile() for tile in tiles], places[first : first + at_once]
        for s in range(GROUP // fmt.scale_group):
            dots = _dots_of_words(v, fmt, weights, s, some, None if first else before_word)
            for tile, rows in enumerate(weights):
                scale, bias = rows.scales[s], rows.biases[s] if rows.biases else None
                for token, place in enumerate(some):
                    at = (first + token) * n_tiles + tile
                    result = add_scaled(v, results[at], dots[token][tile], scale, place.d)
                    if bias is not None:
                        result = v.fma(bias, v.f32(place.sums + s * 4), result)
                    results[at] = v.in_order(result)
    return results


def as_multiplied(v: Vocabulary, fmt, weights: Value) -> Value:
    """Unpacked weights as `Vocabulary.byte_sum` takes them."""
    return weights - fmt.zero if v.centres(fmt) else weights


def is_corrected(v: Vocabulary, fmt) -> bool:
    """Whether integer sums of a format's weights need a correction for its zero point."""
    return fmt.zero != 0 and not v.centres(fmt)


def correction(v: Vocabulary, at: Value, n: int) -> Value:
    """What the zero point of n weights takes from their integer sums."""
    return v.splat(v.load(at, I32), n)


def add_scaled(v: Vocabulary, total: Value, dot: Value, scale: Value, d: Value) -> Value:
    """Add to a token's total what its integer sums are worth: see the formula in `ops/linear.py`."""
    return v.fma(dot.to_f32(), scale * v.f32(d), total)


def _tokens_side_by_side(v: Vocabulary, places: Sequence[Place], n_tiles: int) -> int:
    """So many have their products added in turns, for a sum waits some cycles for the last one: as registers allow.

    Beside the sums there are a word, an input, their product and a constant.
    """
    width = n_tiles * len(places[0].planes) * max(1, TILE_ROWS // v.isa.lanes)  # registers of the sums of a token
    return max(1, min(len(places), SIDE_BY_SIDE // n_tiles, (v.isa.n_registers - 4) // width))


def _dots_of_words(
    v: Vocabulary,
    fmt,
    weights: list[GroupOfRows],
    s: int,
    places: Sequence[Place],
    before_word: Callable[[int], None] | None,
) -> list[list[Value]]:
    """The words of the s-th scale by each token's bytes: for each token the int32 sums of all tiles."""
    n_words, n_planes = fmt.scale_group // 4, len(places[0].planes)

    def sums_of(place: Place) -> list[ByteSum]:
        """One for each plane; what the zero point takes is in the last."""
        starts = [v.constant(0, I32, TILE_ROWS)] * n_planes
        if is_corrected(v, fmt):
            starts[-1] = correction(v, place.sums + s * 4, TILE_ROWS)
        return [v.byte_sum(start, fmt) for start in starts]

    sums = [[sums_of(place) for _ in weights] for place in places]
    for k in range(s * n_words, (s + 1) * n_words):
        if before_word is not None:
            before_word(k)
        words = [rows.words[k] for rows in weights]
        for of_token, place in zip(sums, places, strict=True):
            for p, plane in enumerate(place.planes):
                x = v.splat(v.u32(plane + k * 4), TILE_ROWS).bitcast(I8)
                for of_tile, word in zip(of_token, words, strict=True):
                    of_tile[p].add(word, x)
    return [[_planes_together(of_tile) for of_tile in of_token] for of_token in sums]


def _planes_together(sums: list[ByteSum]) -> Value:
    total, *others = (one.total() for one in sums)
    for other in others:
        total = (total << PLANE_BITS) + other
    return total


class TileScales:
    """Scales of groups of 16 rows in memory, then the biases if there are any; of each number 16 rows side by side."""

    def __init__(self, v: Vocabulary, fmt, memory: Value, n_groups: Value | int) -> None:
        self.v, self.per_group, self.has_biases = v, GROUP // fmt.scale_group, fmt.zero == 0
        self.scales_at = memory
        self.biases_at = memory + n_groups * (self.per_group * TILE_ROWS * 4)
        self.end = self.biases_at + n_groups * (self.per_group * TILE_ROWS * 4)

    def of(self, g: Value) -> tuple[Registers, Registers]:
        """The scales of a group and its biases."""

        def numbers(first: Value) -> Registers:
            places = [first + (g * self.per_group + s) * (TILE_ROWS * 4) for s in range(self.per_group)]
            return Registers([partial(self.v.f32, at, TILE_ROWS) for at in places])

        return numbers(self.scales_at), numbers(self.biases_at) if self.has_biases else Registers([])

    def store(self, g: Value | int, scales: Sequence[Value], biases: Sequence[Value], lane: Value | int = 0) -> None:
        """Put those of a group there; of fewer rows, each register into the lanes from `lane` on."""
        for first, numbers in ((self.scales_at, scales), (self.biases_at, biases)):
            for s, number in enumerate(numbers):
                self.v.store(first + (g * self.per_group + s) * (TILE_ROWS * 4) + lane * 4, number)


class UnpackedTile:
    """16 rows of weights in scratch memory, as it was unpacked for tokens to meet it.

    For every group of 32 columns eight registers of 16 rows x 4 bytes, so that one multiply of bytes meets four columns
    of all 16 rows; behind those of all groups the scales and biases.
    """

    def __init__(self, v: Vocabulary, fmt, memory: Value, n_groups: Value) -> None:
        self.v, self.memory = v, memory
        self.scales = TileScales(v, fmt, memory + n_groups * (TILE_ROWS * GROUP), n_groups)
        self.end = self.scales.end

    def group(self, g: Value) -> GroupOfRows:
        # To the compiler, an address that was not there before: it would keep words on the stack rather than read them
        # again.
        v, words = self.v, self.v.opaque(self.memory + g * (TILE_ROWS * GROUP))
        places = [words + k * TILE_ROWS * 4 for k in range(GROUP // 4)]
        words_of_all = Registers([partial(v.load, at, I8, TILE_ROWS * 4) for at in places])
        return GroupOfRows(words_of_all, *self.scales.of(g))

    def store(
        self, g: Value, words: Sequence[Value], scales: Sequence[Value], biases: Sequence[Value], lane: Value | int = 0
    ) -> None:
        """Put a group there; of fewer rows, each register into the lanes from `lane` on."""
        v, at = self.v, self.memory + g * (TILE_ROWS * GROUP) + lane * 4
        for k, word in enumerate(words):
            v.store(at + k * TILE_ROWS * 4, word)
        self.scales.store(g, scales, biases, lane)


def unpacked_tiles(v: Vocabulary, fmt, n_tiles: int, memory: Value, n_groups: Value) -> list[UnpackedTile]:
    """Several, one behind the other."""
    tiles = [UnpackedTile(v, fmt, memory, n_groups)]
    while len(tiles) < n_tiles:
        tiles.append(UnpackedTile(v, fmt, tiles[-1].end, n_groups))
    return tiles


def store_totals(v: Vocabulary, totals: Sequence[Value], n_tiles: int, out: Value, out_stride: Value) -> None:
    """The totals of `meet_tokens` to rows of results, from where those of the first token begin."""
    for i, total in enumerate(totals):
        token, tile = divmod(i, n_tiles)
        v.store(out + out_stride * (4 * token) + tile * (TILE_ROWS * 4), total)
