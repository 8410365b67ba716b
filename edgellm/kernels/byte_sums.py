"""Integer sums of weights by inputs, as each instruction set makes them best.

All are exact, so a row has the same bits whichever is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellm.kernels.values import I8, I16, Value, vector

if TYPE_CHECKING:
    from edgellm.quants import BlockFormat

LARGEST_INPUT = 127  # in magnitude, of each plane


class ByteSum:
    """Four neighbouring products in each int32, of weights by int8 inputs.

    Weights are unsigned, as `BlockFormat.unpack` gives them, or around their zero where `Vocabulary.centres` says so.

    Sums are made in the order in which a kernel is written (`Vocabulary.in_order`): word after word, for all tokens.
    The compiler would rather finish one sum after the other, and keep on the stack what they are made of.
    """

    def __init__(self, v: Any, start: Value, fmt: BlockFormat) -> None:
        self.v, self.fmt, self._total = v, fmt, start

    def add(self, weights: Value, s: Value) -> None:
        self._total = self.v.in_order(self.v.dot_u8_s8(self._total, weights, s, self.fmt.max_u))

    def total(self) -> Value:
        return self._total


class SignedSum(ByteSum):
    """Of weights around their zero, where signed bytes are multiplied."""

    def add(self, weights: Value, s: Value) -> None:
        self._total = self.v.in_order(self.v.dot_s8_s8(self._total, weights, s))


class PairSum(ByteSum):
    """For AVX2, whose products of bytes come as sums of two in int16.

    Of weights that are small enough, several such sums are added up before they are widened. Those of large ones would
    not fit into int16: of them, magnitudes are multiplied, by inputs that have taken over their signs.
    """

    def __init__(self, v: Any, start: Value, fmt: BlockFormat) -> None:
        super().__init__(v, start, fmt)
        largest = max(fmt.zero, fmt.max_u - fmt.zero) if v.centres(fmt) else fmt.max_u
        self._most = ((1 << 15) - 1) // (2 * largest * LARGEST_INPUT)
        self._pairs: list[Value] = []
        self._n = 0

    def add(self, weights: Value, s: Value) -> None:
        parts = zip(_parts(weights, 32), _parts(s, 32), strict=True)
        pairs = [(self._centred if self.v.centres(self.fmt) else self.v.byte_pairs)(*part) for part in parts]
        if self._n:
            pairs = [self.v.in_order(a + b) for a, b in zip(self._pairs, pairs, strict=True)]
        self._pairs = pairs
        self._n += 1
        if self._n == self._most:  # at once: what waits takes registers
            self._widen()

    def total(self) -> Value:
        self._widen()
        return self._total

    def _centred(self, weights: Value, s: Value) -> Value:
        signed = self.v.call("llvm.x86.avx2.psign.b", vector(I8, 32), s, weights, suffix=False)
        return self.v.byte_pairs(self.v.maximum(weights, -weights), signed)

    def _widen(self) -> None:
        if self._n:
            ones = self.v.constant(1, I16, 16)
            fours = [self.v.pair_sums(pairs, ones) for pairs in self._pairs]
            self._total = self.v.in_order(self._total + self.v.concat(*fours))
            self._n = 0


def _parts(value: Value, n: int) -> list[Value]:
    return [value[at : at + n] for at in range(0, value.n, n)]
