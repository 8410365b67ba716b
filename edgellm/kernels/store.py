"""The kernel store: machine code of kernels in the user's cache folder, found again without Numba.

A folder of the store belongs to one combination of kernel sources, compiler versions, CPU and instruction
set; its name is the hash of them all. So a change to any source, a new Numba or another CPU finds an empty
folder, and nothing stale is ever run. An object stands behind a SHA-256 of its bytes, its kernel's name and its
folder's: what is damaged, half there or another kernel's is compiled again.

Machine code is run only from files that nobody else can have written (`edgellm.files.private`). What is not such a
file is not waited for and not believed: it is as good as absent, and replaced. Where such a file cannot be, kernels
are compiled at every start, which is said. Folders that nobody has used for a season are removed.

A kernel that the folder lacks may ship with the package (`prebuilt`), compiled for the family of the CPU; only
one that is nowhere is compiled. So what was once compiled for this very CPU always comes first.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from edgellm.errors import KernelError
from edgellm.files import kernels_folder, private
from edgellm.files.unfinished import clear_unfinished
from edgellm.kernels import prebuilt
from edgellm.kernels.isa import Isa, host
from edgellm.kernels.isa.cpu import architecture
from edgellm.kernels.registry import Kernel
from edgellm.kernels.sources import source_hash
from edgellm.machine.memory import give_back_freed

Progress = Callable[[int, int, str], None]
_DIGEST_BYTES = 32
_DAY = 86400  # seconds
_UNUSED_DAYS = 90
_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class KernelStore:
    """Compiled kernels for one instruction set, loaded into this process as they are asked for.

    has_compiled:  whether any had to be compiled so far, as on a first start.
    """

    def __init__(self, isa: Isa, folder: Path | None = None) -> None:
        self.isa = isa
        self.has_compiled = False
        self._sources = source_hash()
        self.folder = (folder or kernels_folder()) / f"{isa.name}-{_fingerprint(isa, self._sources)}"
        self._addresses: dict[str, int] = {}
        self._engine: llvm.ExecutionEngine | None = None

    def load(self, kernels: Iterable[Kernel], progress: Progress | None = None) -> None:
        """Make kernels callable, compiling those that neither the store nor the package has.

        progress(done, total, name) is called before each one that is compiled and once at the end. Before the first,
        a log says so if they cannot be kept.
        Raises KernelError when one cannot be compiled or loaded.
        """
        wanted = [kernel for kernel in dict.fromkeys(kernels) if kernel.name not in self._addresses]
        if not wanted:
            return
        if self._engine is None:
            clear_unfinished(self.folder)
        objects = {kernel: self._read(kernel) for kernel in wanted}
        if lacking := [kernel for kernel, code in objects.items() if code is None]:
            objects.update(prebuilt.read(self.isa, self._sources, lacking))
        missing = [kernel for kernel, code in objects.items() if code is None]
        if missing:
            self.has_compiled = True
            private.prepare(self.folder)
        for done, kernel in enumerate(missing):
            if progress:
                progress(done, len(missing), kernel.name)
            objects[kernel] = self._compile(kernel)
        if missing and progress:
            progress(len(missing), len(missing), "")
        self._link(objects)
        if missing:
            give_back_freed()  # some tens of MB, which LLVM needed to compile
        self._note_use()
        if missing or not self.folder.exists():  # a first start, if one that compiles nothing
            self._remove_unused_folders()

    def has(self, kernels: Iterable[Kernel]) -> bool:
        """Whether kernels can be loaded without compiling any."""
        absent = [kernel for kernel in kernels if kernel.name not in self._addresses and self._read(kernel) is None]
        return not absent or len(prebuilt.read(self.isa, self._sources, absent)) == len(set(absent))

    def address(self, kernel: Kernel) -> int:
        """Where a loaded kernel's machine code starts."""
        return self._addresses[kernel.name]

    def function(self, kernel: Kernel) -> Callable[[int, int, int], None]:
        """A loaded kernel as a Python function; calls release the GIL."""
        return _SIGNATURE(self.address(kernel))

    def _path(self, kernel: Kernel) -> Path:
        return self.folder / f"{kernel.name}.o"

    def _read(self, kernel: Kernel) -> bytes | None:
        """The stored object, or None when there is none that can be trusted."""
        content = private.read(self._path(kernel)) or b""
        digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return code if code and digest == self._digest(kernel, code) else None

    def _compile(self, kernel: Kernel) -> bytes:
        from edgellm.kernels.compiler import compile_kernel

        code = compile_kernel(kernel, self.isa)
        private.keep(self._path(kernel), self._digest(kernel, code) + code)
        return code

    def _digest(self, kernel: Kernel, code: bytes) -> bytes:
        return hashlib.sha256(f"{self.folder.name}\0{kernel.name}\0".encode() + code).digest()

    def _note_use(self) -> None:
        """The folder's time of change is the day of its last use."""
        with contextlib.suppress(OSError):
            if time.time() - self.folder.stat().st_mtime > _DAY:
                os.utime(self.folder)

    def _remove_unused_folders(self) -> None:
        """Kernels of older versions, which otherwise pile up. Another process may do the same."""
        with contextlib.suppress(OSError):
            for folder in self.folder.parent.iterdir():
                if folder != self.folder and time.time() - folder.stat().st_mtime > _UNUSED_DAYS * _DAY:
                    shutil.rmtree(folder, ignore_errors=True)

    def _link(self, objects: dict[Kernel, bytes | None]) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        if self._engine is None:
            machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        try:
            for code in objects.values():
                self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            self._engine.finalize_object()
        except RuntimeError as problem:
            raise KernelError(f"a compiled kernel could not be loaded: {problem}") from problem
        for kernel in objects:
            address = self._engine.get_function_address(kernel.symbol)
            if not address:
                raise KernelError(f"the object of kernel {kernel.name} does not hold {kernel.symbol}")
            self._addresses[kernel.name] = address


def _numba_version() -> str:
    """The file in which numba keeps its version: to import numba takes longer than a start should."""
    spec = find_spec("numba")
    if spec is None or spec.origin is None:
        raise KernelError("numba is not installed; pip install numba")
    return Path(spec.origin).with_name("_version.py").read_text()


def _fingerprint(isa: Isa, sources: str) -> str:
    """A hash of everything that the machine code depends on."""
    parts = (
        sources,
        _numba_version(),
        llvmlite.__version__,
        sys.platform,  # a folder may be shared, with a container or another system on the same CPU
        architecture(),
        sys.byteorder,
        isa.name,
        *isa.target(*host()),
        str(isa.stream_level),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
