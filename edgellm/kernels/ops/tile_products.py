"""The innermost loop of linear layers: a group of weights of 16 rows, or of several times 16, meets some tokens.

What is loaded most are the inputs, four bytes of a token for all rows. Where registers have room for the sums of two
tiles of rows, they are loaded once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgellm.kernels.records import PLANE_BITS, TILE_ROWS
from edgellm.kernels.staged import I8, I32, Value, Vocabulary

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

    words:   eight registers, each with four neighbouring weights of every row.
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
    n_rows: int = TILE_ROWS,
) -> list[Value]:
    """A group of weights of some tiles by some tokens, added to the totals: of all tiles for one token after the other.

    places: where the tokens' group is. tiles: called for as many tokens as meet weights side by side. before_word: what
    is done beside, when the first tokens are about to meet each of the words. n_rows: of each tile.
    """
    n_tiles, results = len(tiles), list(totals)
    at_once = _tokens_side_by_side(v, fmt, len(places), n_tiles * n_rows)
    for first in range(0, len(places), at_once):
        weights, some = [tile() for tile in tiles], places[first : first + at_once]
        for s in range(GROUP // fmt.scale_group):
            dots = _dots_of_words(v, fmt, weights, s, some, None if first else before_word, n_rows)
            for token, place in enumerate(some):
                for tile, rows in enumerate(weights):
                    at = (first + token) * n_tiles + tile
                    results[at] = add_scaled(v, results[at], dots[token][tile], rows.scales[s], place.d)
                    if rows.biases:
                        results[at] = v.fma(rows.biases[s], v.f32(place.sums + s * 4), results[at])
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


def _tokens_side_by_side(v: Vocabulary, fmt, n_tokens: int, n_rows: int) -> int:
    """So many have their products added in turns, for a sum waits some cycles for the last one: as registers allow.

    Weights around their zero have no sums in int16 that wait to be widened (`byte_sums.PairSum`).
    """
    width = max(1, n_rows // v.isa.lanes)  # registers of the sums of a token
    others = n_tokens + (1 if v.centres(fmt) else 2)
    return max(1, min(n_tokens, SIDE_BY_SIDE * TILE_ROWS // n_rows, v.isa.n_registers // width - others))


def _dots_of_words(
    v: Vocabulary,
    fmt,
    weights: list[GroupOfRows],
    s: int,
    places: Sequence[Place],
    before_word: Callable[[int], None] | None,
    n_rows: int,
) -> list[list[Value]]:
    """The words of the s-th scale by each token's bytes: for each token the int32 sums of all tiles."""

    def start_of(total: Value, place: Place, plane: int) -> Value:
        start = total << PLANE_BITS if plane else total
        is_last = plane == len(place.planes) - 1
        return start + correction(v, place.sums + s * 4, n_rows) if is_last and is_corrected(v, fmt) else start

    n_words = fmt.scale_group // 4
    totals = [[v.constant(0, I32, n_rows)] * len(weights) for _ in places]
    for p in range(len(places[0].planes)):
        pairs = zip(totals, places, strict=True)
        sums = [[v.byte_sum(start_of(total, place, p), fmt) for total in of_token] for of_token, place in pairs]
        for k in range(s * n_words, (s + 1) * n_words):
            if before_word is not None and p == 0:
                before_word(k)
            for of_token, place in zip(sums, places, strict=True):
                x = v.splat(v.u32(place.planes[p] + k * 4), n_rows).bitcast(I8)
                for one, rows in zip(of_token, weights, strict=True):
                    one.add(rows.words[k], x)
        totals = [[one.total() for one in of_token] for of_token in sums]
    return totals


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
        self.end = self.biases_at + n_groups * (self.per_group * TILE_ROWS * 4)

    def group(self, g: Value) -> GroupOfRows:
        # To the compiler, an address that was not there before: it would keep words on the stack rather than read them
        # again.
        v, words = self.v, self.v.opaque(self.memory + g * (TILE_ROWS * GROUP))
        scales, biases = self.scales_of(g)
        return GroupOfRows(
            [v.load(words + k * TILE_ROWS * 4, I8, TILE_ROWS * 4) for k in range(GROUP // 4)], scales, biases
        )

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
