"""For the plain Numba parts of kernels: numbers in memory, and other kernels."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from llvmlite import ir

from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import F32, F64, I8, I32, I64, Value, Vocabulary, staged


def call_kernel(v: Vocabulary, kernel: Value, record: Value, chunk: Value, thread: Value) -> None:
    """Do a chunk of the op that a record describes, with the kernel at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    v.builder.call(v.builder.inttoptr(kernel.llvm, kind.as_pointer()), [record.llvm, chunk.llvm, thread.llvm])


@cache
def memory(isa) -> SimpleNamespace:
    """Loads and stores for an instruction set, of one number, or of n in one piece; every address is in bytes."""

    @staged(isa, "f32", "i64")
    def load_f32(v, address):
        return v.load(address, F32)

    @staged(isa, "void", "i64", "f32")
    def store_f32(v, address, value):
        v.store(address, value)

    @staged(isa, "void", "i64", "f32")
    def store_f16(v, address, value):
        v.store(address, v.f32_to_f16(value))

    @staged(isa, "f64", "i64")
    def load_f64(v, address):
        return v.load(address, F64)

    @staged(isa, "void", "i64", "f64")
    def store_f64(v, address, value):
        v.store(address, value)

    @staged(isa, "i64", "i64")
    def load_i64(v, address):
        return v.load(address, I64)

    @staged(isa, "void", "i64", "i64")
    def store_i64(v, address, value):
        v.store(address, value)

    @staged(isa, "i64", "i64")
    def load_i32(v, address):
        return v.load(address, I32).sext(I64)

    @staged(isa, "void", "i64", "i64")
    def store_i32(v, address, value):
        v.store(address, value.trunc(I32))

    @staged(isa, "i64", "i64")
    def load_u8(v, address):
        return v.load(address, I8).zext(I64)

    @staged(isa, "void", "i64", "i64")
    def store_u8(v, address, value):
        v.store(address, value.trunc(I8))

    @staged(isa, "void", "i64")
    def prefetch(v, address):
        v.prefetch(address)

    @staged(isa, "void", "i64", "i64", "i64")
    def copy_f32(v, x, out, n):
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes)))

    @staged(isa, "void", "i64", "i64", "i64")
    def copy_bytes(v, x, out, n):
        v.elements(n, 4 * isa.lanes, lambda i, lanes: v.store(out + i, v.load(x + i, I8, lanes)))

    @staged(isa, "void", "i64", "i64")
    def clear_f32(v, out, n):
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.constant(0.0, F32, lanes)))

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def add_f32(v, a, b, out, n):
        """out = a + b; out may be one of them."""
        v.elements(
            n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.f32(a + i * 4, lanes) + v.f32(b + i * 4, lanes))
        )

    return SimpleNamespace(
        add_f32=add_f32,
        load_f32=load_f32,
        store_f32=store_f32,
        store_f16=store_f16,
        load_f64=load_f64,
        store_f64=store_f64,
        load_i64=load_i64,
        store_i64=store_i64,
        load_i32=load_i32,
        store_i32=store_i32,
        load_u8=load_u8,
        store_u8=store_u8,
        prefetch=prefetch,
        copy_f32=copy_f32,
        copy_bytes=copy_bytes,
        clear_f32=clear_f32,
    )
