"""What this machine offers, as lines of text."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from edgellm import files
from edgellm._version import __version__
from edgellm.cli.terminal import counted, size_text
from edgellm.files import tile_files
from edgellm.machine import available_memory, total_memory, usable_threads

# Of the dozens of features a processor lists, those that decide which kernels it can run.
_TELLING_FEATURES = [
    *("sse4.2", "avx", "avx2", "fma", "f16c", "avxvnni", "avxvnniint8", "amx-int8"),
    *("avx512f", "avx512bw", "avx512vnni", "avx512bf16", "avx512fp16"),
    *("neon", "dotprod", "i8mm", "bf16", "fullfp16", "sve", "sve2"),
]


def describe_machine() -> Iterator[str]:
    """Versions, processor, memory and caches."""
    from llvmlite import binding as llvm

    from edgellm.kernels import isa, prebuilt

    cpu, features = isa.host()
    llvm_version = ".".join(map(str, llvm.llvm_version_info))
    rows = {
        "edgellm": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "numba": importlib.metadata.version("numba"),
        "llvm": f"{llvm_version} (llvmlite {importlib.metadata.version('llvmlite')})",
        "processor": f"{cpu_name()} ({cpu})",
        "features": " ".join(name for name in _TELLING_FEATURES if features.get(name)) or "none that matter",
        "instructions": isa.describe(),
        "cores": f"{psutil.cpu_count(logical=False) or 'unknown'} physical, {psutil.cpu_count()} logical; "
        f"this process may keep {usable_threads()} busy",
        "memory": f"{size_text(psutil.virtual_memory().total)}; "
        f"this process may have {size_text(total_memory())}, {size_text(available_memory())} now",
        "models": _folder(files.models_folder()),
        "kernels": _folder(files.kernels_folder()),
        "tiles": _folder(tile_files.folder()),
        "prebuilt": prebuilt.describe(isa.choose()),
    }
    for name, value in rows.items():
        yield f"{name:12}  {value}"


def cpu_name() -> str:
    """The name that the maker gave the processor."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or platform.processor()
    return platform.processor() or platform.machine()


def _folder(path: Path) -> str:
    held = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    return f"{path} ({counted(len(held), 'file')}, {size_text(sum(held))})" if held else f"{path} (empty)"
