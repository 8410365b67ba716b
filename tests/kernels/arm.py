"""Kernels for 64-bit ARM on a machine that is none: compiled by LLVM, and run by an emulator.

MCJIT links the objects into this process as it would on ARM. The emulator (QEMU's, as the package `unicorn`) sees
the memory of this process under the same addresses, a page as soon as it is touched; so records, weights and
activations are the very arrays that native kernels would be given.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from edgellm.files import kernels_folder
from edgellm.kernels import compiler
from edgellm.kernels.isa import NEON
from edgellm.kernels.registry import Kernel
from edgellm.kernels.store import KernelStore

TRIPLE = "aarch64-unknown-linux-gnu"
FEATURES = "+neon,+dotprod"
# By planes of the input. A word of a tile is found alike for both, and such kernels take long to compile.
FORMATS_OF_TILES = {1: ("Q4_1", "Q6_K"), 2: ("Q4_1",)}
PAGE = 4096
STACK_BYTES = 1 << 18


def target_machine(triple: str = TRIPLE, cpu: str = "", features: str = FEATURES) -> llvm.TargetMachine:
    """LLVM's code generator for another machine; skips the test where this LLVM has none."""
    try:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        return llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
    except RuntimeError as problem:
        pytest.skip(f"this LLVM cannot compile for {triple}: {problem}")


def arm_object(kernel: Kernel) -> bytes:
    """A kernel's object for ARM: compiled once, found again by other files and in the next session.

    They are kept as those of this machine are, but apart, and apart from those of another version of this file.
    """
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    store = KernelStore(NEON, kernels_folder() / f"arm-elsewhere-{version}")
    machine = target_machine()
    if (code := store._read(kernel)) is None:
        with compiling_for(TRIPLE, machine):
            code = store._compile(kernel)
    return code


@contextmanager
def compiling_for(triple: str, machine: llvm.TargetMachine) -> Iterator[None]:
    """Within, `compile_kernel` makes objects for another machine."""

    def written_elsewhere(build, original=compiler.written_by_numba):
        text, name = original(build)
        lines = [line for line in text.splitlines() if not line.startswith("target ")]
        return "\n".join([*of_target(triple, machine), *lines]), name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "target_machine", lambda isa: machine)
        patch.setattr(compiler, "written_by_numba", written_elsewhere)
        yield


def of_target(triple: str, machine: llvm.TargetMachine) -> list[str]:
    """The lines of a module's IR that say for which machine it is."""
    return [f'target triple = "{triple}"', f'target datalayout = "{machine.target_data}"']


class EmulatedStore:
    """What `tests.kernels.compiled.Compiled` needs of a kernel store, for ARM."""

    isa = NEON

    def __init__(self) -> None:
        module = llvm.parse_assembly(f'target triple = "{TRIPLE}"')
        self._engine = llvm.create_mcjit_compiler(module, target_machine())
        self._addresses: dict[str, int] = {}

    def load(self, kernels: list[Kernel]) -> None:
        for kernel in kernels:
            if kernel.name not in self._addresses:
                self._engine.add_object_file(llvm.ObjectFileRef.from_data(arm_object(kernel)))
                self._engine.finalize_object()
                self._addresses[kernel.name] = self._engine.get_function_address(kernel.symbol)

    def function(self, kernel: Kernel) -> Callable[[int, int, int], None]:
        address = self._addresses[kernel.name]
        return lambda record, chunk, thread: _emulate(address, record, chunk, thread)


def _emulate(address: int, *args: int) -> None:
    """Call a function of ARM's machine code."""
    import unicorn
    from unicorn import arm64_const as arm

    emulator = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    emulator.ctl_set_cpu_model(arm.UC_CPU_ARM64_MAX)
    emulator.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # let it use NEON
    emulator.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, _map_pages)
    for name, implementation in _C_LIBRARY.items():
        at = llvm.address_of_symbol(name)
        emulator.hook_add(unicorn.UC_HOOK_CODE, _called, implementation, at, at)

    stack, end = np.zeros(STACK_BYTES, np.uint8), np.zeros(2 * PAGE, np.uint8)
    returns_to = -(-end.ctypes.data // PAGE) * PAGE
    for i, value in enumerate(args):
        emulator.reg_write(arm.UC_ARM64_REG_X0 + i, value)
    emulator.reg_write(arm.UC_ARM64_REG_SP, (stack.ctypes.data + STACK_BYTES) // 16 * 16)
    emulator.reg_write(arm.UC_ARM64_REG_LR, returns_to)
    emulator.emu_start(address, returns_to)


def _map_pages(emulator: Any, access: int, address: int, n_bytes: int, value: int, data: Any) -> bool:
    import unicorn

    for page in range(address // PAGE, (address + max(n_bytes, 1) - 1) // PAGE + 1):
        if not any(first <= page * PAGE <= last for first, last, _ in emulator.mem_regions()):
            emulator.mem_map_ptr(page * PAGE, PAGE, unicorn.UC_PROT_ALL, page * PAGE)
    return True


# What kernels may call (`compiler.ALLOWED_EXTERNALS`). The addresses are those of this machine's own code, which
# the emulator cannot run: it is done for it.
_C_LIBRARY: dict[str, Callable[[int, int, int], object]] = {
    "memcpy": ctypes.memmove,
    "memmove": ctypes.memmove,
    "memset": ctypes.memset,
}


def _called(emulator: Any, address: int, n_bytes: int, implementation: Callable[[int, int, int], object]) -> None:
    from unicorn import arm64_const as arm

    implementation(*(emulator.reg_read(arm.UC_ARM64_REG_X0 + i) for i in range(3)))
    emulator.reg_write(arm.UC_ARM64_REG_PC, emulator.reg_read(arm.UC_ARM64_REG_LR))
