"""SIMD from Python: staged functions, whose Python runs while the kernel is compiled.

A kernel has two kinds of code. The outside is ordinary Numba: loops over rows and tokens. The innermost part
is *staged*: Python that runs once, at compile time, and whose operators emit LLVM instructions. There a
`Value` is a register, a Python list is a tile of registers, and a Python `for` is a loop unrolled:

    @staged(isa, "f32", "i64", "i64")
    def dot_of_32(v, a, b):                          # v: the vocabulary of the instruction set
        x, y = v.load(a, F32, 32), v.load(b, F32, 32)
        return (x * y).sum()

Numba calls such a function like any other. Register tiles need this: their size is fixed by the
instruction set, and every index into them must be known while compiling.

Types are llvmlite types; integers carry no sign, the operation does (`to_f32` signed, `u_to_f32` unsigned).
Addresses are plain 64-bit integers. Nothing here checks bounds: Python did, before the program ran.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import log, sqrt
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from edgellm.kernels.byte_sums import ByteSum
from edgellm.kernels.loops import Loops
from edgellm.kernels.values import F16, F32, F64, I1, I8, I16, I32, I64, Value, bits_of, vector

if TYPE_CHECKING:
    from edgellm.quants import BlockFormat

__all__ = ["F16", "F32", "F64", "I1", "I8", "I16", "I32", "I64", "Value", "Vocabulary", "bits_of", "staged", "vector"]

# The lanes of one register may be added in whatever order is quickest. No other sum is ever reordered.
_REDUCTION_FLAGS = ("reassoc",)
F64_MANTISSA = (1 << 52) - 1  # the bits behind its exponent


class Vocabulary(Loops):
    """The words of staged code on plain LLVM vectors; an instruction set overrides what it does better.

    Attributes an instruction set declares (see `edgellm.kernels.isa`): `name`, `lanes` (float32 per register),
    and the shapes of the register tiles that suit it.
    """

    def __init__(self, isa, builder: ir.IRBuilder) -> None:
        self.isa, self.builder = isa, builder

    # --- values -------------------------------------------------------------------------------------------

    def constant(self, value: float | Sequence[float], element: ir.Type, n: int = 1) -> Value:
        if isinstance(value, Sequence):
            return Value(self, ir.Constant(vector(element, len(value)), list(value)))
        return Value(self, ir.Constant(vector(element, n), [value] * n if n > 1 else value))

    def like(self, value: Value | float, other: Value) -> Value:
        """A number, or lanes again and again, to as many lanes as `other` has."""
        if not isinstance(value, Value):
            return self.constant(float(value) if other.is_float else int(value), other.element, other.n)
        return self.tile(value, other.n // value.n) if value.n < other.n else value

    def tile(self, value: Value, times: int) -> Value:
        """A scalar, or the lanes of a register, again and again."""
        if value.n == 1:
            return self.splat(value, times)
        return self.shuffle(value, value, list(range(value.n)) * times)

    def splat(self, scalar: Value, n: int) -> Value:
        one = Value(
            self,
            self.builder.insert_element(
                ir.Constant(vector(scalar.element, n), ir.Undefined), scalar.llvm, ir.Constant(I32, 0)
            ),
        )
        return self.shuffle(one, one, [0] * n)

    def vector_of(self, scalars: Sequence[Value]) -> Value:
        """Scalars side by side."""
        result = ir.Constant(vector(scalars[0].element, len(scalars)), ir.Undefined)
        if len(scalars) == 1:
            return scalars[0]
        for i, scalar in enumerate(scalars):
            result = self.builder.insert_element(result, scalar.llvm, ir.Constant(I32, i))
        return Value(self, result)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Lanes of a (0 to n-1) and b (n to 2n-1) in a new order."""
        if a.n == 1:
            return self.vector_of([(a, b)[lane] for lane in lanes])
        if len(lanes) == 1:
            return a[lanes[0]] if lanes[0] < a.n else b[lanes[0] - a.n]
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return Value(self, self.builder.shuffle_vector(a.llvm, b.llvm, mask))

    def concat(self, *parts: Value) -> Value:
        """Registers end to end (a power of two of equals, or scalars)."""
        if parts[0].n == 1:
            return self.vector_of(parts)
        if len(parts) == 1:
            return parts[0]
        half = len(parts) // 2
        a, b = self.concat(*parts[:half]), self.concat(*parts[half:])
        return self.shuffle(a, b, range(a.n + b.n))

    def halves(self, value: Value) -> tuple[Value, Value]:
        """The lower and the upper lanes."""
        return value[: value.n // 2], value[value.n // 2 :]

    def folded(self, value: Value, join: Callable[[Value, Value], Value]) -> Value:
        """All lanes joined, halves with halves: of floats quicker than `Value.sum` and `max`, which go lane by lane."""
        while value.n > 1:
            value = join(*self.halves(value))
        return value

    def call(self, name: str, result: ir.Type, *args: Value, suffix: bool = True) -> Value:
        """An LLVM intrinsic; the overload suffix is that of the last argument."""
        if suffix:
            last = args[-1]
            kind = f"i{last.element.width}" if not last.is_float else f"f{bits_of(last.element)}"
            name += f".v{last.n}{kind}" if last.n > 1 else f".{kind}"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(
            module, ir.FunctionType(result, [a.llvm.type for a in args]), name
        )
        flags = _REDUCTION_FLAGS if "reduce.f" in name else ()
        return Value(self, self.builder.call(function, [a.llvm for a in args], fastmath=flags))

    def opaque(self, integer: Value) -> Value:
        """The same integer, of which the compiler knows nothing: it computes with it where that is written."""
        kind = integer.llvm.type
        same = ir.InlineAsm(ir.FunctionType(kind, [kind]), "", "=r,0")
        return Value(self, self.builder.call(same, [integer.llvm]))

    def in_order(self, value: Value) -> Value:
        """The same registers, made in the order in which a kernel is written, where the compiler can be told so."""
        return value

    # --- memory -------------------------------------------------------------------------------------------

    def _pointer(self, address: Value, element: ir.Type) -> ir.Value:
        return self.builder.inttoptr(address.llvm, element.as_pointer())

    def load(self, address: Value, element: ir.Type, n: int = 1) -> Value:
        kind = vector(element, n)
        return Value(self, self.builder.load(self._pointer(address, kind), align=1))

    def on_stack(self, n_bytes: int) -> Value:
        """The address of so many bytes, which are there until the kernel returns."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(ir.ArrayType(I8, n_bytes))
            return Value(self, self.builder.ptrtoint(place, I64))

    def store(self, address: Value, value: Value) -> None:
        self.builder.store(value.llvm, self._pointer(address, value.llvm.type), align=1)

    def prefetch(self, address: Value, level: int = 2, is_written: bool = False) -> None:
        """Ask for a cache line ahead of its use, into a level of cache, 1 or 2; a wrong address does no harm.

        level 0 is the first level too, and the line leaves no trace when it goes from there (non-temporal): so what is
        read once takes no room from what is read again.

        is_written:  it is to be written to, so other cores give it up.

        A compiler barrier behind it keeps it where it is among loads. The compiler would gather those of a whole loop
        at its beginning, and a core that asks for many lines at once waits until it may ask for the next one.
        """
        pointer = self.builder.inttoptr(address.llvm, I8.as_pointer())
        name = "llvm.prefetch.p0"
        hints = (int(is_written), (0, 3, 2)[level], 1)  # to read or to write; how much to keep it; data
        arguments = [pointer, *(ir.Constant(I32, hint) for hint in hints)]
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(
            module, ir.FunctionType(ir.VoidType(), [a.type for a in arguments]), name
        )
        self.builder.call(function, arguments)
        barrier = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True)
        self.builder.call(barrier, [])

    # --- words of block formats (see `BlockFormat.unpack`) -----------------------------------------------

    def u8(self, address: Value, n: int = 1) -> Value:
        return self.load(address, I8, n)

    def u32(self, address: Value, n: int = 1) -> Value:
        return self.load(address, I32, n)

    def f32(self, address: Value, n: int = 1) -> Value:
        return self.load(address, F32, n)

    def f16(self, address: Value, n: int = 1) -> Value:
        return self.load(address, F16, n)

    def half(self, address: Value, n: int = 1) -> Value:
        """float16 in memory, float32 in the register."""
        return self.f16_to_f32(self.f16(address, n))

    def brain_half(self, address: Value, n: int = 1) -> Value:
        """bfloat16 in memory: the upper half of a float32."""
        return (self.load(address, I16, n).zext(I32) << 16).bitcast(F32)

    def bits(self, word: Value) -> Value:
        """The bits of words, lowest first, as bytes of 0 or 1.

        Each byte is repeated eight times, and each copy keeps one bit. A cast of the word to single bits says the same,
        but without AVX-512 the compiler then takes out one bit after the other.
        """
        some = word.bitcast(I8)
        eight = self.shuffle(some, some, [i for i in range(some.n) for _ in range(8)])
        one = eight & self.like(self.constant([1 << bit for bit in range(8)], I8), eight)
        return self.call("llvm.umin", one.llvm.type, one, self.like(1, one))

    def lookup(self, table: Sequence[int], indices: Value) -> Value:
        """table[i] for indices below 16, each entry a byte."""
        result = self.constant(int(table[0]), I8, indices.n)
        for i, entry in enumerate(table[1:], 1):
            chosen = Value(self, self.builder.icmp_signed("==", indices.llvm, self.like(i, indices).llvm))
            result = self.select(chosen, self.constant(int(entry), I8, indices.n), result)
        return result

    def power_of_two(self, e: Value) -> Value:
        """2**(e - 128) for an e from 0 to 255, also where that is subnormal."""
        normal = (e - 1) << 23
        subnormal = self.like(0x00200000, e) << e  # e of 0 and 1
        return self.select(self.greater(e, self.like(1, e)), normal, subnormal).bitcast(F32)

    # --- arithmetic ---------------------------------------------------------------------------------------

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        wide = max((a, b, c), key=lambda x: x.n)
        a, b, c = (self.like(x, wide) for x in (a, b, c))
        return self.call("llvm.fma", c.llvm.type, a, b, c)

    def maximum(self, a: Value, b: Value | float) -> Value:
        b = self.like(b, a)
        return self.select(self.greater(a, b), a, b)

    def minimum(self, a: Value, b: Value | float) -> Value:
        b = self.like(b, a)
        return self.select(self.greater(b, a), a, b)

    def greater(self, a: Value, b: Value) -> Value:
        compare = self.builder.fcmp_ordered if a.is_float else self.builder.icmp_signed
        return Value(self, compare(">", a.llvm, self.like(b, a).llvm))

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        return Value(self, self.builder.select(condition.llvm, a.llvm, self.like(b, a).llvm))

    def abs(self, a: Value) -> Value:
        return self.call("llvm.fabs", a.llvm.type, a)

    def round_to_i32(self, a: Value) -> Value:
        """To the nearest integer, ties to even."""
        return self.rint(a)._convert("fptosi", I32)

    def rint(self, a: Value) -> Value:
        """To the nearest integer, ties to even, still as float; for magnitudes below 2**22."""
        return self.call("llvm.rint", a.llvm.type, a)

    def f16_to_f32(self, a: Value) -> Value:
        return a._convert("fpext", F32)

    def f32_to_f16(self, a: Value) -> Value:
        return a._convert("fptrunc", F16)

    def exp(self, x: Value) -> Value:
        """e**x to about 1 ulp for x <= 88; below -87 it is 0.

        x = n ln 2 + r splits off a power of two that goes straight into the exponent bits (Cody and Waite's two-step
        reduction). e**r is 1 + r + r**2 times a polynomial, which is fitted to |r| <= ln 2 / 2 and off by 3e-9 at most.
        """
        clamped = self.minimum(self.maximum(x, -87.33654), 88.0)
        # So large a number has no bits left for a fraction; its last ones then hold n + 127.
        large = self.like(1.5 * 2.0**23 + 127, x)
        rounded = self.fma(clamped, self.like(1.4426950408889634, x), large)
        n = rounded - large
        r = self.fma(n, self.like(-0.693145751953125, x), clamped)
        r = self.fma(n, self.like(-1.42860682030941723212e-6, x), r)
        result = self.like(0.00138145988, x)
        for coefficient in (0.00836871658, 0.041668389, 0.166665211, 0.49999994, 1.0, 1.0):
            result = self.fma(result, r, self.like(coefficient, x))
        power = (rounded.bitcast(I32) << 23).bitcast(F32)
        return self.select(self.greater(x, self.like(-87.33654, x)), result * power, self.like(0.0, x))

    def log(self, x: Value) -> Value:
        """The logarithm of a float64 that is at least 1: of its power of two, and of the rest, which is near 1.

        For a rest m within sqrt(1/2) and sqrt(2), log(m) is 2 artanh(t) with t = (m - 1) / (m + 1), and the series of
        artanh, t + t**3 / 3 + t**5 / 5 + ..., ends in less than a unit of the last place.
        """
        bits = x.bitcast(I64)
        mantissa = ((bits & F64_MANTISSA) | (1023 << 52)).bitcast(F64)
        exponent = ((bits >> 52) - 1023).to(F64)
        is_large = self.greater(mantissa, self.like(sqrt(2), mantissa))
        m = self.select(is_large, mantissa * 0.5, mantissa)
        exponent = self.select(is_large, exponent + 1.0, exponent)
        t = (m - 1.0) / (m + 1.0)
        square = t * t
        series = self.like(1 / 23, t)
        for odd in range(21, 0, -2):
            series = series * square + 1 / odd
        return exponent * log(2) + t * series * 2.0

    def tanh(self, x: Value) -> Value:
        """The hyperbolic tangent to about 1 ulp; NaN stays NaN.

        Near 0, where 1 - 2 / (e**2x + 1) would lose the last bits, x + x**3 times a polynomial that is fitted to
        |x| <= 0.625 and off by 2e-10 at most.
        """
        far = self.like(1.0, x) - self.like(2.0, x) / (self.exp(x * 2.0) + 1.0)
        z = x * x
        near = self.like(0.00214293739, x)
        for coefficient in (-0.00817737263, 0.0217006933, -0.0539467596, 0.133332059, -0.333333313):
            near = self.fma(near, z, self.like(coefficient, x))
        near = self.fma(near * z, x, x)
        return self.select(self.greater(self.abs(x), self.like(0.625, x)), far, near)

    def erfc(self, x: Value) -> Value:
        """What the error function lacks to 1, off by some 1e-7 of its value; NaN stays NaN.

        Up to 1, 1 - x times a polynomial in x**2; beyond, e**-x**2 times one in 1 / (1 + x / 2). Both are fitted.
        """
        z, size = x * x, self.abs(x)
        near = self.like(7.85379805e-05, x)
        for coefficient in (-0.00080101755, 0.00518832573, -0.0268538109, 0.112835851, -0.376126258, 1.12837917):
            near = self.fma(near, z, self.like(coefficient, x))
        t = self.like(1.0, x) / (size * 0.5 + 1.0)
        rest = self.like(-0.0871456458, x)
        for coefficient in (0.0416275582, 0.283885465, 0.177831482, 0.303706429, 0.278680019, 0.000218097417):
            rest = self.fma(rest, t, self.like(coefficient, x))
        far = self.exp(-z) * rest
        far = self.select(self.greater(x, self.like(0.0, x)), far, self.like(2.0, x) - far)
        return self.select(self.greater(size, self.like(1.0, x)), far, self.like(1.0, x) - near * x)

    def dot_u8_s8(self, accumulator: Value, u: Value, s: Value, max_u: int) -> Value:
        """accumulator + sums of four neighbouring products, exactly.

        accumulator: i32 [n/4]; u: unsigned bytes [n], none above `max_u`; s: signed bytes [n].
        """
        product = u.zext(I32) * s.sext(I32)
        for _ in range(2):  # neighbours meet: n -> n/2 -> n/4
            product = self.shuffle(product, product, range(0, product.n, 2)) + self.shuffle(
                product, product, range(1, product.n, 2)
            )
        return accumulator + product

    def byte_sum(self, start: Value, fmt: BlockFormat) -> ByteSum:
        """A sum of products of a format's weights by inputs, from `start` on."""
        return ByteSum(self, start, fmt)

    centres_large = False  # whether `centres` is true of weights that take more than seven bits

    def centres(self, fmt: BlockFormat) -> bool:
        """Whether such a sum takes a format's weights around their zero; otherwise unsigned, as they are unpacked."""
        return self.centres_large and fmt.max_u > 127

    def dot_pairs(self, accumulator: Value, a: Value, b: Value) -> Value:
        """accumulator + sums of two neighbouring products: i32 [n]; a and b: i16 [2n], or b one pair for all."""
        b = self.like(b, a)
        for first in (0, 1):
            x, y = (self.shuffle(side, side, range(first, side.n, 2)).sext(I32) for side in (a, b))
            accumulator = accumulator + x * y
        return accumulator

    def pause(self) -> None:
        """Tell the CPU that this is a waiting loop."""

    def transpose8(self, rows: Sequence[Value]) -> list[Value]:
        """Eight registers of eight lanes, mirrored at the diagonal, in three rounds of shuffles."""
        for width in (1, 2, 4):
            swapped = list(rows)
            for i in range(8):
                if i & width == 0:
                    a, b = rows[i], rows[i + width]
                    low = [(lane if lane & width == 0 else 8 + lane - width) for lane in range(8)]
                    high = [(lane + width if lane & width == 0 else 8 + lane) for lane in range(8)]
                    swapped[i], swapped[i + width] = self.shuffle(a, b, low), self.shuffle(a, b, high)
            rows = swapped
        return list(rows)


def staged(isa, result: str, *arguments: str):
    """Make a staged function callable from Numba kernels compiled for `isa`.

    `result` and `arguments` are kinds: "i64" (also addresses), "i32", "f32", "f64", or "void" as a result.
    """
    from numba import types
    from numba.extending import intrinsic

    numba_types: dict[str, Any] = {
        "i64": types.int64,
        "i32": types.int32,
        "f32": types.float32,
        "f64": types.float64,
        "void": types.void,
    }

    def decorate(function):
        def typed(typing_context, *actual):
            signature = numba_types[result](*(numba_types[kind] for kind in arguments))

            def codegen(context, builder, signature, args):
                v = isa.vocabulary(isa, builder)
                value = function(v, *(Value(v, arg) for arg in args))
                return context.get_dummy_value() if result == "void" else value.llvm

            return signature, codegen

        # Numba reads the number of arguments here.
        names = ["typing_context", *(f"a{i}" for i in range(len(arguments)))]
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        typed.__name__ = getattr(function, "__name__", "staged")
        return intrinsic(typed)

    return decorate
