"""64-bit ARM: NEON with the dot product instructions (Armv8.2 and every Apple M chip)."""

from __future__ import annotations

from edgellm.kernels.isa.base import Isa, host_target
from edgellm.kernels.staged import I32, Value, Vocabulary, vector


class _Neon(Vocabulary):
    def pause(self) -> None:
        from llvmlite import ir

        self.call("llvm.aarch64.hint", ir.VoidType(), self.constant(1, I32), suffix=False)

    def dot_u8_s8(self, accumulator: Value, u: Value, s: Value, max_u: int) -> Value:
        if u.n > 16:
            parts = zip(self.halves(accumulator), self.halves(u), self.halves(s), strict=True)
            return self.concat(*(self.dot_u8_s8(*part, max_u) for part in parts))
        if max_u > 127:  # sdot is signed by signed: u = (u - 128) + 64 + 64
            for _ in range(2):
                accumulator = self._sdot(accumulator, self.like(64, u), s)
            u = u ^ 128
        return self._sdot(accumulator, u, s)

    def _sdot(self, accumulator: Value, a: Value, b: Value) -> Value:
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
