"""Scalars for the plain Numba parts of kernels: addresses in, numbers out."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from edgellm.kernels.staged import F32, I32, I64, staged


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
