"""From a Numba function to machine code of one object file. Imported only when a kernel must be compiled."""

from __future__ import annotations

import re

import llvmlite.binding as llvm

from edgellm.errors import KernelError
from edgellm.kernels.isa import Isa, host
from edgellm.kernels.numba_settings import plain_numba
from edgellm.kernels.objects import undefined_symbols
from edgellm.kernels.registry import Kernel

with plain_numba():
    from edgellm.kernels.numba_ir import written_by_numba

# What compiled code may call, for it is found in every running process: the C library's memory functions, those that
# macOS has beside them, and what Windows calls before it uses a large piece of the stack. `_fltused` is a mark for
# Microsoft's linker that numbers are used, and nothing is behind it.
ALLOWED_EXTERNALS = frozenset(
    {"memcpy", "memset", "memmove", "bzero", "__bzero", "memset_pattern16", "__chkstk", "_fltused"}
)

CALLERS_ALIGNMENT = 16  # bytes to which every caller aligns its stack


def compile_kernel(kernel: Kernel, isa: Isa) -> bytes:
    """The object file of a kernel for an instruction set; its only symbol is `kernel.symbol`.

    The same whatever is set for Numba. Raises KernelError when the code would need a function that a fresh process does
    not have.
    """
    with plain_numba():
        module = _numba_module(kernel, isa)
    machine = target_machine(isa)
    _optimize(module, machine)
    called = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    code = machine.emit_object(module)
    if missing := (called | undefined_symbols(code)) - ALLOWED_EXTERNALS:
        names = ", ".join(sorted(missing))
        raise KernelError(f"kernel {kernel.name} for {isa.name} calls {names}, which no later process would have")
    return code


def _numba_module(kernel: Kernel, isa: Isa) -> llvm.ModuleRef:
    """What Numba makes of a kernel: a module whose only name to the outside is `kernel.symbol`."""
    text, name = written_by_numba(lambda: kernel.build(isa))
    module = llvm.parse_assembly(_with_aligned_stacks(text, isa))
    _keep_only(module, name, kernel.symbol)
    return module


def _with_aligned_stacks(assembly: str, isa: Isa) -> str:
    """Every function aligns its stack to a register of the CPU.

    LLVM does so for variables, not for registers that it spills there: wherever the caller's stack ends, many of those
    would lie across two cache lines, which took kernels with many values at hand up to half as much time again.
    """
    register_bytes = 4 * isa.lanes
    if register_bytes <= CALLERS_ALIGNMENT:
        return assembly
    return re.sub(r"^(define .*) \{$", rf"\1 alignstack({register_bytes}) {{", assembly, flags=re.MULTILINE)


def target_machine(isa: Isa) -> llvm.TargetMachine:
    """LLVM's code generator for an instruction set, tuned to this CPU."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    cpu, features = isa.target(*host())
    return llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


def _keep_only(module: llvm.ModuleRef, wrapper: str, symbol: str) -> None:
    """Rename the entry point and hide everything else, so that many such objects live in one process."""
    for function in module.functions:
        if function.is_declaration:
            continue
        if function.name == wrapper:
            function.name = symbol
            function.linkage = "external"
        else:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"


def _optimize(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    """All that LLVM's -O3 does; and once each function is as simple as it gets, what follows from that for others.

    A function of Numba's returns whether it raised something. That none of ours does is only seen in the end.
    """
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    cleanup = llvm.create_new_module_pass_manager()
    cleanup.add_ipsccp_pass()  # interprocedural sparse conditional constant propagation
    cleanup.add_simplify_cfg_pass()
    cleanup.add_global_dead_code_eliminate_pass()
    cleanup.run(module, builder)
