"""Any other CPU: plain LLVM vectors, 128 bits wide, and nothing that a library function would have to do."""

from __future__ import annotations

from edgellm.kernels.isa.base import Isa
from edgellm.kernels.isa.cpu import architecture
from edgellm.kernels.staged import F16, F32, F64, I16, I32, I64, Value, Vocabulary


class _Generic(Vocabulary):
    """Spells out what a CPU without the instruction would call a C function for, lane by lane."""

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """In float64 the product is exact. Their sum is rounded to odd, so that rounding it again does no harm

        (Boldo and Melquiond, 2008): where the sum is not exact, its last bit says that there is more.
        """
        if architecture() != "x86_64":  # other baselines have an instruction
            return super().fma(a, b, c)
        widest = max((a, b, c), key=lambda x: x.n)
        a, b, c = (self.like(x, widest).to(F64) for x in (a, b, c))
        product = a * b
        total = product + c
        part = total - product
        error = (product - (total - part)) + (c - part)  # exactly (Knuth's two-sum)
        bits = total.bitcast(I64)
        # 1 where the error has the sum's sign, else -1
        outwards = self.like(1, bits) - (((error.bitcast(I64) ^ bits) >> 62) & 2)
        is_inexact = Value(self, self.builder.fcmp_ordered("!=", error.llvm, self.like(0.0, error).llvm))
        odd = bits + self.select(is_inexact, outwards * ((bits & 1) ^ 1), self.like(0, bits))
        return odd.bitcast(F64).to(F32)

    def rint(self, a: Value) -> Value:
        """The sum with so large a number has no bits left for a fraction."""
        return (a + 1.5 * 2.0**23) - 1.5 * 2.0**23

    def f16_to_f32(self, a: Value) -> Value:
        half = a.bitcast(I16) if a.n > 1 else Value(self, self.builder.bitcast(a.llvm, I16))
        bits = half.zext(I32)
        sign = (bits & 0x8000) << 16
        # Move exponent and mantissa up, then rescale by 2**112: correct for subnormals too.
        magnitude = ((bits & 0x7FFF) << 13).bitcast(F32) * 2.0**112
        special = ((bits & 0x7FFF) << 13) | 0x7F800000  # infinity and NaN keep an all-ones exponent
        is_special = Value(self, self.builder.icmp_signed(">=", (bits & 0x7FFF).llvm, self.like(0x7C00, bits).llvm))
        return (self.select(is_special, special, magnitude.bitcast(I32)) | sign).bitcast(F32)

    def f32_to_f16(self, a: Value) -> Value:
        """Rounds to nearest even; what is beyond float16 becomes infinity."""
        bits = a.bitcast(I32)
        sign = (bits & -0x80000000) >> 16
        magnitude = bits & 0x7FFFFFFF
        # Adding a number whose last place is float16's does the rounding, for normal and subnormal alike.
        exponent = self._max_i32((magnitude & 0x7F800000), 113 << 23)
        rounder = (exponent + (13 << 23)).bitcast(F32)
        rounded = (magnitude.bitcast(F32) + rounder).bitcast(I32) - rounder.bitcast(I32)
        normal = ((exponent - (113 << 23)) >> 13) + rounded
        overflow = Value(self, self.builder.icmp_signed(">=", magnitude.llvm, self.like(0x477FF000, magnitude).llvm))
        result = self.select(overflow, self.like(0x7C00, bits), normal)
        is_nan = Value(self, self.builder.icmp_signed(">", magnitude.llvm, self.like(0x7F800000, magnitude).llvm))
        result = self.select(is_nan, self.like(0x7E00, bits), result) | sign
        narrow = result.trunc(I16)
        return Value(self, self.builder.bitcast(narrow.llvm, F16)) if narrow.n == 1 else narrow.bitcast(F16)

    def _max_i32(self, a: Value, least: int) -> Value:
        return self.select(self.greater(a, self.like(least, a)), a, self.like(least, a))


def _baseline(cpu, features):
    return "", ""  # LLVM's baseline of the architecture


GENERIC = Isa(
    "generic",
    "plain vectors",
    lambda features: True,
    _baseline,
    _Generic,
    lanes=4,
    n_registers=16,
    tile_tokens=4,
    has_long_code=True,
)
