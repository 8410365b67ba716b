"""What Numba writes for a kernel: LLVM IR, neither optimized nor compiled. `compiler` does both, once.

Numba on its own optimizes and compiles every function by itself, and optimizes it again within each function that calls
it, all for the very CPU. That took nearly half of the time, for machine code that nobody ran.

This uses what Numba does not document: how it links the functions that it has written, its "code library".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba import cfunc, types
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

Function = Callable[[int, int, int], None]
KERNEL = types.void(types.int64, types.int64, types.int64)


def written_by_numba(build: Callable[[], Function]) -> tuple[str, str]:
    """The IR of the kernel that `build` returns and of all that it calls, and the name that it has there.

    One thread at a time, see `plain_numba`.
    """
    with _nothing_compiled():
        # No fastmath: it would let LLVM reorder the sums whose order the kernels promise.
        written = cfunc(KERNEL, error_model="numpy")(build())
    return written.inspect_llvm(), written.native_name


class _Library(JITCodeLibrary):
    """The functions of a kernel, linked as they were written. They have no addresses and cannot be called."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout  # all that this does beside optimizing

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0


class _Codegen(JITCPUCodegen):
    _library_class = _Library

    def set_env(self, env_name: str, env: Any) -> None:
        """Nothing: what a function would find there is for errors and Python objects, which kernels do not have."""


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Inside, Numba writes functions into libraries of ours. Who compiles code of their own meanwhile waits."""
    with global_compiler_lock:
        context = cpu_target.target_context
        context.refresh()  # what Numba's own functions need at run time is made now, at the latest, and compiled
        own = context._internal_codegen
        context._internal_codegen = _Codegen("edgellm")
        try:
            yield
        finally:
            context._internal_codegen = own
