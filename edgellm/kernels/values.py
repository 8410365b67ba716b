"""Values of staged code (see `staged.py`): registers while their code is being written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


def vector(element: ir.Type, n: int) -> ir.Type:
    """The type of n elements in a register; one element is a plain scalar."""
    return ir.VectorType(element, n) if n > 1 else element


class Emitter(Protocol):
    """What values need of the vocabulary that they belong to."""

    builder: Any  # llvmlite's IRBuilder

    def like(self, value: Value | float, other: Value) -> Value: ...

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value: ...

    def f16_to_f32(self, a: Value) -> Value: ...

    def call(self, name: str, result: ir.Type, *args: Value, suffix: bool = True) -> Value: ...


class Value:
    """A register while its code is being written: operators on it emit instructions."""

    def __init__(self, v: Emitter, llvm: ir.Value) -> None:
        self.v, self.llvm = v, llvm

    @property
    def n(self) -> int:
        return self.llvm.type.count if isinstance(self.llvm.type, ir.VectorType) else 1

    @property
    def element(self) -> ir.Type:
        return self.llvm.type.element if isinstance(self.llvm.type, ir.VectorType) else self.llvm.type

    @property
    def is_float(self) -> bool:
        return not isinstance(self.element, ir.IntType)

    def _binary(self, other: Value | float, on_int: str, on_float: str | None = None) -> Value:
        other = self.v.like(other, self)
        builder = self.v.builder
        if not self.is_float:
            return Value(self.v, getattr(builder, on_int)(self.llvm, other.llvm))
        if on_float is None:
            raise TypeError(f"{on_int} needs integers, found {self.llvm.type}")
        return Value(self.v, getattr(builder, on_float)(self.llvm, other.llvm))

    def __add__(self, other):
        return self._binary(other, "add", "fadd")

    def __sub__(self, other):
        return self._binary(other, "sub", "fsub")

    def __mul__(self, other):
        return self._binary(other, "mul", "fmul")

    def __truediv__(self, other):
        return self._binary(other, "sdiv", "fdiv")

    def __and__(self, other):
        return self._binary(other, "and_")

    def __or__(self, other):
        return self._binary(other, "or_")

    def __xor__(self, other):
        return self._binary(other, "xor")

    def __lshift__(self, other):
        return self._binary(other, "shl")

    def __rshift__(self, other):
        """Logical: zeros come in from the left."""
        return self._binary(other, "lshr")

    def __neg__(self):
        return Value(self.v, self.v.builder.fneg(self.llvm) if self.is_float else self.v.builder.neg(self.llvm))

    def __getitem__(self, index: int | slice) -> Value:
        """One lane, or a run of lanes; indices are known while compiling."""
        if isinstance(index, slice):
            return self.v.shuffle(self, self, list(range(self.n))[index])
        if self.n == 1:
            return self
        return Value(self.v, self.v.builder.extract_element(self.llvm, ir.Constant(I32, index)))

    def bitcast(self, element: ir.Type) -> Value:
        """The same bits as lanes of another type."""
        bits = self.n * bits_of(self.element)
        return Value(self.v, self.v.builder.bitcast(self.llvm, vector(element, bits // bits_of(element))))

    def _convert(self, method: str, element: ir.Type) -> Value:
        return Value(self.v, getattr(self.v.builder, method)(self.llvm, vector(element, self.n)))

    def to_f32(self) -> Value:
        """From signed integers, or from float16 exactly."""
        if self.element == F16:
            return self.v.f16_to_f32(self)
        return self._convert("sitofp", F32)

    def to(self, element: ir.Type) -> Value:
        """Signed integers or floats as floats of another size."""
        if not self.is_float:
            return self._convert("sitofp", element)
        return self._convert("fpext" if bits_of(element) > bits_of(self.element) else "fptrunc", element)

    def u_to_f32(self) -> Value:
        """From unsigned integers."""
        return self._convert("uitofp", F32)

    def zext(self, element: ir.Type) -> Value:
        return self._convert("zext", element)

    def sext(self, element: ir.Type) -> Value:
        return self._convert("sext", element)

    def trunc(self, element: ir.Type) -> Value:
        return self._convert("trunc", element)

    def sum(self) -> Value:
        """All lanes added, in the order that is quickest."""
        return self._reduce("fadd", ir.Constant(self.element, -0.0)) if self.is_float else self._reduce("add")

    def max(self) -> Value:
        """The largest lane: of floats, NaN left out, or of signed integers."""
        return self._reduce("fmax" if self.is_float else "smax")

    def _reduce(self, operation: str, *start: ir.Value) -> Value:
        if self.n == 1:
            return self
        return self.v.call(f"llvm.vector.reduce.{operation}", self.element, *(Value(self.v, s) for s in start), self)


def bits_of(element: ir.Type) -> int:
    return {F16: 16, F32: 32, F64: 64}.get(element) or element.width
