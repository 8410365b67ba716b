"""x86-64: AVX-512 with VNNI, AVX-VNNI at 256 bits, AVX2 with FMA."""

from __future__ import annotations

from llvmlite import ir

from edgellm.kernels.byte_sums import ByteSum, PairSum
from edgellm.kernels.isa.base import Isa, Portable, host_target
from edgellm.kernels.staged import I1, I8, I16, I32, Value, Vocabulary, vector
from edgellm.kernels.values import bits_of
from edgellm.quants import BlockFormat


class _X86(Vocabulary):
    def pause(self) -> None:
        self.call("llvm.x86.sse2.pause", ir.VoidType(), suffix=False)

    def in_order(self, value: Value) -> Value:
        kind = value.llvm.type
        if value.n * bits_of(value.element) > self.isa.lanes * 32:
            return self.concat(*map(self.in_order, self.halves(value)))
        any_register = "x" if self.isa.n_registers == 16 else "v"
        same = ir.InlineAsm(ir.FunctionType(kind, [kind]), "", f"={any_register},0", side_effect=True)
        return Value(self, self.builder.call(same, [value.llvm]))

    def lookup(self, table, indices: Value) -> Value:
        if indices.n > self.isa.lanes * 4:
            return self.concat(*(self.lookup(table, half) for half in self.halves(indices)))
        name = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[
            indices.n
        ]
        lanes = self.constant([int(entry) for entry in table] * (indices.n // 16), I8)
        return self.call(name, indices.llvm.type, lanes, indices, suffix=False)


class _Vnni(_X86):
    """vpdpbusd multiplies four bytes by four bytes and adds them into 32 bits, in one instruction."""

    def dot_u8_s8(self, accumulator: Value, u: Value, s: Value, max_u: int) -> Value:
        bits = u.n * 8
        if bits > self.isa.lanes * 32:  # wider than a register: two instructions
            parts = zip(self.halves(accumulator), self.halves(u), self.halves(s), strict=True)
            return self.concat(*(self.dot_u8_s8(*part, max_u) for part in parts))
        kind = vector(I32, u.n // 4)
        name = f"llvm.x86.avx512.vpdpbusd.{bits}"
        # LLVM types the byte operands of this intrinsic as bytes from version 22 on.
        return self.call(
            name, kind, accumulator, u.bitcast(self.byte_operand), s.bitcast(self.byte_operand), suffix=False
        )

    byte_operand = I32

    def dot_pairs(self, accumulator: Value, a: Value, b: Value) -> Value:
        name = f"llvm.x86.avx512.vpdpwssd.{a.n * 16}"
        b = self.like(b, a)
        return self.call(name, vector(I32, accumulator.n), accumulator, a.bitcast(I32), b.bitcast(I32), suffix=False)


class _Avx512(_Vnni):
    def bits(self, word: Value) -> Value:
        """AVX-512 has registers of single bits, by which bytes become 0 or 1."""
        return Value(self, self.builder.bitcast(word.llvm, vector(I1, word.n * word.element.width))).zext(I8)


class _Avx2(_X86):
    centres_large = True

    def dot_u8_s8(self, accumulator: Value, u: Value, s: Value, max_u: int) -> Value:
        if u.n > 32:
            parts = zip(self.halves(accumulator), self.halves(u), self.halves(s), strict=True)
            return self.concat(*(self.dot_u8_s8(*part, max_u) for part in parts))
        assert max_u <= 127, "pairs of products would overflow 16 bits"
        return self.dot_pairs(accumulator, self.byte_pairs(u, s), self.constant(1, I16, 16))

    def byte_pairs(self, u: Value, s: Value) -> Value:
        """Sums of two neighbouring products, int16 [16], of unsigned bytes by signed ones, where they fit."""
        return self.call("llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16), u, s, suffix=False)

    def byte_sum(self, start: Value, fmt: BlockFormat) -> ByteSum:
        return PairSum(self, start, fmt)

    def dot_pairs(self, accumulator: Value, a: Value, b: Value) -> Value:
        return accumulator + self.pair_sums(a, self.like(b, a))

    def pair_sums(self, a: Value, b: Value) -> Value:
        """Sums of two neighbouring products, int32 [8], of int16 [16]."""
        return self.call("llvm.x86.avx2.pmadd.wd", vector(I32, 8), a, b, suffix=False)


# The levels of the x86-64 psABI, which LLVM's CPUs of these names have in whole.
_V2 = ("cmov", "cx8", "cx16", "fxsr", "mmx", "popcnt", "sahf", "sse", "sse2", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")


def _has(*names: str):
    return lambda features: all(features.get(name) for name in names)


def _has_vnni_256(f):
    return _has(*_V3)(f) and (f.get("avxvnni") or _has("avx512vnni", "avx512vl")(f))


def _vnni_256_target(cpu, f):
    return "x86-64-v3", "+avxvnni" if f.get("avxvnni") else "+avx512vnni,+avx512vl"


AVX512 = Isa(
    "avx512",
    "AVX-512 VNNI",
    _has("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    host_target,
    _Avx512,
    lanes=16,
    n_registers=32,
    tile_tokens=8,
    # LLVM would rather give this CPU registers of 256 bits, as its first makers needed.
    portable=Portable("x86-64-v4", (*_V4, "avx512vnni"), ("-prefer-256-bit",)),
)
AVX_VNNI = Isa(
    "avxvnni",
    "AVX-VNNI (256 bit)",
    _has_vnni_256,
    _vnni_256_target,
    _Vnni,
    lanes=8,
    n_registers=16,
    tile_tokens=4,
    portable=Portable("x86-64-v3", (*_V3, "avxvnni")),
)
AVX2 = Isa(
    "avx2",
    "AVX2 and FMA",
    _has(*_V3),
    lambda cpu, f: ("x86-64-v3", ""),
    _Avx2,
    lanes=8,
    n_registers=16,
    tile_tokens=4,
    has_long_code=True,
    portable=Portable("x86-64-v3", _V3),
)
