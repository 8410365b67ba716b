"""64-bit ARM: NEON with the dot product instructions (Armv8.2 and every Apple M chip)."""

from __future__ import annotations

from edgellm.kernels.byte_sums import ByteSum, SignedSum
from edgellm.kernels.isa.base import Isa, host_target
from edgellm.kernels.staged import I32, Value, Vocabulary, vector
from edgellm.quants import BlockFormat


class _Neon(Vocabulary):
    centres_large = True

    def pause(self) -> None:
        from llvmlite import ir

        self.call("llvm.aarch64.hint", ir.VoidType(), self.constant(1, I32), suffix=False)

    def dot_u8_s8(self, accumulator: Value, u: Value, s: Value, max_u: int) -> Value:
        assert max_u <= 127, "sdot is signed by signed"
        return self.dot_s8_s8(accumulator, u, s)

    def byte_sum(self, start: Value, fmt: BlockFormat) -> ByteSum:
        return SignedSum(self, start, fmt) if self.centres(fmt) else ByteSum(self, start, fmt)

    def dot_s8_s8(self, accumulator: Value, a: Value, b: Value) -> Value:
        """accumulator + sums of four neighbouring products."""
        if a.n > 16:
            parts = zip(self.halves(accumulator), self.halves(a), self.halves(b), strict=True)
            return self.concat(*(self.dot_s8_s8(*part) for part in parts))
        return self.call("llvm.aarch64.neon.sdot.v4i32.v16i8", vector(I32, 4), accumulator, a, b, suffix=False)


NEON = Isa(
    "neon",
    "NEON with dot product",
    lambda f: f.get("neon") and f.get("dotprod"),
    host_target,
    _Neon,
    lanes=4,
    n_registers=32,
    tile_tokens=8,
)
