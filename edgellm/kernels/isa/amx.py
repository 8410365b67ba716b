"""AMX, the matrix unit of some x86 CPUs: registers of up to 16 rows of 64 bytes, multiplied by each other.

It is no instruction set of its own here: kernels that need it are made beside those of AVX-512, and used where
`has_amx` says so. One instruction adds to 16 x 16 sums in float32 the products of 16 rows of 32 numbers:

    sum[i][j] += a[i][2 k] * b[k][2 j] + a[i][2 k + 1] * b[k][2 j + 1],   k from 0 to 15

So `a` lies as rows do, and `b` in words of two numbers that follow each other down a column (Intel's architecture
instruction set extensions reference, chapter 3). Numbers too small for a normal float32 count as 0.

Another multiplies bytes, signed ones of `a` by unsigned ones of `b`, into sums of 32-bit integers, which are exact; a
word is four bytes then.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence

from edgellm.kernels.isa.base import Isa
from edgellm.kernels.isa.cpu import host
from edgellm.kernels.isa.x86 import AVX512
from edgellm.kernels.staged import I8, Value, Vocabulary

ROWS, WORDS = 16, 16  # of a register; a word is two numbers
STEP = 2 * WORDS  # columns of `a` that one instruction goes through
ROW_BYTES = 4 * WORDS
FULL = (ROWS, ROW_BYTES)
FEATURES = ("amx-tile", "amx-bf16", "amx-int8")  # LLVM's names

# From Linux' asm/prctl.h and asm/fpu/types.h: a process asks for the memory that its threads need to be interrupted.
_SYSTEM_CALL_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


@functools.cache
def has_amx(isa: Isa) -> bool:
    """Whether kernels with these words can run in this process, beside those of an instruction set."""
    _, features = host()
    return isa is AVX512 and all(features.get(name) for name in FEATURES) and _is_permitted()


def _is_permitted() -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(_SYSTEM_CALL_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def configure(v: Vocabulary, scratch: Value, shapes: Sequence[tuple[int, int]] = (FULL,) * 8) -> None:
    """Say what shapes the registers have; scratch are 64 bytes. Other words come after it, and `release` last.

    shapes:  rows, and bytes of a row, of each of the eight.
    """
    palette, row_bytes, rows = [1, *[0] * 15], [part for _, n in shapes for part in (n, 0)], [n for n, _ in shapes]
    v.store(scratch, v.constant([*palette, *row_bytes, *[0] * 16, *rows, *[0] * 8], I8))
    _call(v, "llvm.x86.ldtilecfg", _pointer(v, scratch))


def release(v: Vocabulary) -> None:
    _call(v, "llvm.x86.tilerelease")


def zero(v: Vocabulary, register: int) -> None:
    _call(v, "llvm.x86.tilezero", _number(register))


def load(v: Vocabulary, register: int, address: Value, stride: Value) -> None:
    """All rows of a register, so many bytes apart."""
    _call(v, "llvm.x86.tileloadd64", _number(register), _pointer(v, address), stride.llvm)


def store(v: Vocabulary, register: int, address: Value, stride: Value) -> None:
    _call(v, "llvm.x86.tilestored64", _number(register), _pointer(v, address), stride.llvm)


def add_products(v: Vocabulary, sums: int, a: int, b: int) -> None:
    """Add to a register of sums the products of two others."""
    _call(v, "llvm.x86.tdpbf16ps", _number(sums), _number(a), _number(b))


def add_byte_products(v: Vocabulary, sums: int, a: int, b: int) -> None:
    """The same of bytes: signed ones of `a`, unsigned ones of `b`, integers as sums."""
    _call(v, "llvm.x86.tdpbsud", _number(sums), _number(a), _number(b))


def _number(register: int):
    from llvmlite import ir

    return ir.Constant(I8, register)


def _pointer(v: Vocabulary, address: Value):
    return v.builder.inttoptr(address.llvm, I8.as_pointer())


def _call(v: Vocabulary, name: str, *arguments) -> None:
    from llvmlite import ir

    module = v.builder.module
    function = module.globals.get(name) or ir.Function(
        module, ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments]), name
    )
    v.builder.call(function, arguments)
