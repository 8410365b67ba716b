"""For the plain Numba parts of kernels: scalars in memory, and other kernels."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from llvmlite import ir

from edgellm.kernels.staged import F32, I32, I64, Value, Vocabulary, staged


def call_kernel(v: Vocabulary, kernel: Value, record: Value, chunk: Value, thread: Value) -> None:
    """Do a chunk of the op that a record describes, with the kernel at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    v.builder.call(v.builder.inttoptr(kernel.llvm, kind.as_pointer()), [record.llvm, chunk.llvm, thread.llvm])


@cache
def memory(isa) -> SimpleNamespace:
    """Loads and stores for an instruction set; every address is in bytes."""

    @staged(isa, "f32", "i64")
    def load_f32(v, address):
        return v.load(address, F32)

    @staged(isa, "void", "i64", "f32")
    def store_f32(v, address, value):
        v.store(address, value)

    @staged(isa, "void", "i64", "f32")
    def store_f16(v, address, value):
        v.store(address, v.f32_to_f16(value))

    @staged(isa, "i64", "i64")
    def load_i64(v, address):
        return v.load(address, I64)

    @staged(isa, "void", "i64", "i64")
    def store_i64(v, address, value):
        v.store(address, value)

    @staged(isa, "i64", "i64")
    def load_i32(v, address):
        return v.load(address, I32).sext(I64)

    return SimpleNamespace(
        load_f32=load_f32,
        store_f32=store_f32,
        store_f16=store_f16,
        load_i64=load_i64,
        store_i64=store_i64,
        load_i32=load_i32,
    )
