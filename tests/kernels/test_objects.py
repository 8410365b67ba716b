"""Objects for every system, made by LLVM's own code generators: what they want from elsewhere is seen in each kind."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import llvmlite.binding as llvm
import pytest

from edgellm.errors import KernelError
from edgellm.kernels import compiler
from edgellm.kernels.isa import AVX2, GENERIC, NEON, Isa, cpu
from edgellm.kernels.isa import generic as generic_module
from edgellm.kernels.objects import undefined_symbols
from edgellm.kernels.registry import Kernel, find
from edgellm.kernels.staged import Vocabulary
from edgellm.quants import FORMATS

from .arm import FEATURES, compiling_for, of_target, target_machine

X86 = ["x86_64-unknown-linux-gnu", "x86_64-apple-macosx13.0", "x86_64-pc-windows-msvc"]
ARM = ["aarch64-unknown-linux-gnu", "arm64-apple-macosx14.0", "aarch64-pc-windows-msvc"]
V3 = ",".join(f"+{name}" for name in AVX2.portable.needs)  # type: ignore[union-attr]

MODULE = """
declare i32 @short(i32)
declare i32 @a_rather_long_name(i32)
declare extern_weak i32 @perhaps()
declare i32 @_begins_with_an_underscore()
declare i32 @never_called()
@number = external global i32
@own = internal global i32 5
define internal i32 @hidden(i32 %x) noinline {
  %y = load volatile i32, ptr @own
  %z = add i32 %x, %y
  ret i32 %z
}
define i32 @the_kernel(i32 %x) {
  %a = call i32 @short(i32 %x)
  %b = call i32 @a_rather_long_name(i32 %a)
  %c = call i32 @perhaps()
  %d = call i32 @_begins_with_an_underscore()
  %e = load i32, ptr @number
  %f = call i32 @hidden(i32 %e)
  %g = add i32 %b, %c
  %h = add i32 %d, %f
  %i = add i32 %g, %h
  ret i32 %i
}
"""


def compiled(text: str, triple: str) -> bytes:
    machine = target_machine(triple, features="")
    module = llvm.parse_assembly("\n".join([*of_target(triple, machine), text]))
    return machine.emit_object(module)


@pytest.mark.parametrize("triple", X86 + ARM)
def test_undefined_symbols(triple: str) -> None:
    wanted = {"short", "a_rather_long_name", "perhaps", "_begins_with_an_underscore", "number"}
    assert undefined_symbols(compiled(MODULE, triple)) == wanted


@pytest.mark.parametrize("triple", X86 + ARM)
def test_an_object_that_wants_nothing(triple: str) -> None:
    assert undefined_symbols(compiled("define i32 @f(i32 %x) { ret i32 %x }", triple)) == set()


@pytest.mark.parametrize("triple", X86)
def test_a_function_in_the_place_of_an_instruction(triple: str) -> None:
    """Only the object shows it: LLVM's module has an intrinsic."""
    text = """
        declare double @llvm.fma.f64(double, double, double)
        define double @f(double %x) {
          %y = call double @llvm.fma.f64(double %x, double %x, double %x)
          ret double %y
        }"""
    assert undefined_symbols(compiled(text, triple)) - {"_fltused"} == {"fma"}


def test_an_object_of_another_kind() -> None:
    with pytest.raises(KernelError, match="unknown kind, which begins with 00 61 73 6d"):
        undefined_symbols(b"\0asm\1\0\0\0")


KERNELS = [
    find("linear_prefill", FORMATS["Q6_K"]),
    find("linear_decode", FORMATS["Q4_1"]),
    find("quantize"),
    find("work"),
]


@cache
def written_once(kernel: Kernel, isa: Isa) -> tuple[str, str]:
    """What Numba writes of a kernel, which takes longest: it is told of the system afterwards."""
    return compiler.written_by_numba(lambda: kernel.build(isa))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(
    ("triple", "isa"),
    [*((triple, isa) for triple in X86[1:] for isa in (AVX2, GENERIC)),
     *((triple, NEON) for triple in ARM[1:])],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_kernels_want_nothing_that_another_system_lacks(triple: str, isa: Isa, kernel, monkeypatch) -> None:
    """`compile_kernel` would refuse them; those for Linux are compiled by all other tests."""
    features = {AVX2: V3, GENERIC: "", NEON: FEATURES}[isa]
    written = written_once(kernel, isa)
    monkeypatch.setattr(compiler, "written_by_numba", lambda build: written)
    with compiling_for(triple, target_machine(triple, features=features)):
        code = compiler.compile_kernel(kernel, isa)
    assert kernel.symbol.encode() in code


@pytest.mark.parametrize(
    ("triple", "used"),
    [(X86[0], {"memset"}), (X86[1], {"__bzero"}), (X86[2], {"memset", "__chkstk", "_fltused"}),
     (ARM[0], {"memset"}), (ARM[1], {"bzero"}), (ARM[2], {"memset", "__chkstk"})],
)  # fmt: skip
def test_what_systems_have_of_their_own_is_allowed(triple: str, used: set[str]) -> None:
    """Zeros, and on Windows a large stack frame and floating point."""
    text = """
        declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
        define double @f(double %x, ptr %p, i64 %n) {
          %large = alloca [100000 x i8]
          call void @llvm.memset.p0.i64(ptr %p, i8 0, i64 %n, i1 false)
          %at = getelementptr i8, ptr %large, i64 %n
          store volatile i8 1, ptr %at
          %y = fmul double %x, %x
          ret double %y
        }"""
    found = undefined_symbols(compiled(text, triple))
    assert found == used
    assert found <= compiler.ALLOWED_EXTERNALS


@pytest.mark.parametrize("triple", X86)
def test_a_kernel_that_would_call_the_c_library_is_refused(triple: str) -> None:
    careless = replace(GENERIC, vocabulary=Vocabulary)
    machine = target_machine(triple, features="")
    with (
        compiling_for(triple, machine),
        pytest.raises(KernelError, match=r"linear_f32_decode\.F32 for generic calls fmaf"),
    ):
        compiler.compile_kernel(find("linear_f32_decode", FORMATS["F32"]), careless)


def test_the_process_and_not_the_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program for x86-64 on a computer with ARM has no instruction for a * b + c either."""
    monkeypatch.setattr(generic_module, "architecture", lambda: "x86_64")
    monkeypatch.setattr("platform.machine", lambda: "ARM64")
    triple = X86[2]
    with compiling_for(triple, target_machine(triple, features="")):
        code = compiler.compile_kernel(find("linear_f32_decode", FORMATS["F32"]), GENERIC)
    assert "fmaf" not in undefined_symbols(code)
    assert cpu.architecture() in ("x86_64", "aarch64", "arm64")
