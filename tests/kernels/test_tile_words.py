"""Numbers of groups in loops over a block: formats compute with them as with numbers of which all is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.kernels.ops.tile_products import GROUP
from edgellm.kernels.tile_words import GroupNumber
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.tiles import pieces

LOOPED = [fmt for fmt in FORMATS.values() if fmt.n_alike]


def value(number: GroupNumber | int) -> int:
    """With rounds that are known, as they are when a kernel runs."""
    return number.known + number.step * number.k if isinstance(number, GroupNumber) else number


@given(
    st.integers(0, 7),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 7),
    st.integers(0, 300),
    st.sampled_from([1, 2, 4, 8]),
)
def test_arithmetic_is_that_of_integers(known: int, step: int, k: int, n: int, divisor: int) -> None:
    number, whole = GroupNumber(known, step, k), known + step * k  # type: ignore[arg-type]
    assert value(number) == whole
    assert value(number + n) == value(n + number) == whole + n
    assert value(number * n) == value(n * number) == whole * n
    if step % divisor:
        for compute in (lambda: number // divisor, lambda: number % divisor, lambda: divmod(number, divisor)):
            with pytest.raises(ValueError, match=f"over {step} groups .* modulo {divisor}"):
                compute()
        return
    assert (value(number // divisor), number % divisor) == divmod(whole, divisor)
    assert tuple(map(value, divmod(number, divisor))) == divmod(whole, divisor)


class Reads:
    """A block that notes from where in a tile packed bytes are read; whatever is done with them is done to it."""

    def __init__(self, fmt: BlockFormat) -> None:
        self.starts = {piece.start: piece.at for piece in pieces(fmt)}
        self.found: list[object] = []

    def packed(self, at: GroupNumber | int, n: int) -> Reads:
        looped = isinstance(at, GroupNumber)
        self.found.append((self.starts[at.known] + 16 * at.step * at.k if looped else self.starts[at], n))
        return self

    def concat(self, *parts: Reads) -> Reads:
        return self

    def lookup(self, table: object, indices: Reads) -> Reads:
        return self

    def __rshift__(self, n: GroupNumber | int) -> Reads:
        self.found.append(value(n))
        return self

    def __and__(self, other: object) -> Reads:
        return self

    __or__ = __lshift__ = __and__


@pytest.mark.parametrize("fmt", LOOPED, ids=str)
def test_a_loop_reads_what_code_without_one_does(fmt: BlockFormat) -> None:
    assert fmt.block_size // GROUP % fmt.n_alike == 0
    for group in range(fmt.block_size // GROUP):
        k, known = divmod(group, fmt.n_alike)
        written, looped = Reads(fmt), Reads(fmt)
        fmt.unpack(written, written, group)
        fmt.unpack(looped, looped, GroupNumber(known, fmt.n_alike, k))  # type: ignore[arg-type]
        assert written.found == looped.found
