"""This CPU: what LLVM says of it and, on 64-bit ARM, what the system says.

LLVM names ARM's features on some systems only and leaves out the dot product. Systems tell of each themselves; that
is also what they let a process use, so it comes first.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

from edgellm.machine.sysctl import sysctl


@functools.cache
def host() -> tuple[str, dict[str, bool]]:
    """LLVM's name of this CPU and its feature flags, by LLVM's names."""
    import llvmlite.binding as llvm

    features = dict(llvm.get_host_cpu_features())
    if architecture() in ("aarch64", "arm64"):
        features |= _arm_features()
    return llvm.get_host_cpu_name(), features


@functools.cache
def architecture() -> str:
    """What LLVM calls the architecture of this process. The machine may be another and emulate it."""
    import llvmlite.binding as llvm

    return llvm.get_process_triple().partition("-")[0]


def _arm_features() -> dict[str, bool]:
    """What the system says of the features that kernels need; nothing where it cannot be asked."""
    if sys.platform in ("linux", "android"):
        return of_linux(_getauxval(_AT_HWCAP))
    if sys.platform == "darwin":
        return of_macos(sysctl)
    if sys.platform == "win32":
        return of_windows(ctypes.WinDLL("kernel32").IsProcessorFeaturePresent)
    return {}


# From the kernel's auxvec.h and its hwcap.h for arm64.
_AT_HWCAP = 16
_ASIMD, _ASIMDDP = 1 << 1, 1 << 20

# From Windows' winnt.h.
_PF_ARM_NEON_INSTRUCTIONS_AVAILABLE = 19
_PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE = 43


def of_linux(hwcap: int) -> dict[str, bool]:
    """From the word AT_HWCAP of the auxiliary vector."""
    return {"neon": bool(hwcap & _ASIMD), "dotprod": bool(hwcap & _ASIMDDP)}


def of_macos(ask: Callable[[str], int | None]) -> dict[str, bool]:
    """From sysctl; every Mac with such a CPU has NEON."""
    return {"neon": True, "dotprod": ask("hw.optional.arm.FEAT_DotProd") == 1}


def of_windows(is_present: Callable[[int], int]) -> dict[str, bool]:
    """From IsProcessorFeaturePresent."""
    return {
        "neon": bool(is_present(_PF_ARM_NEON_INSTRUCTIONS_AVAILABLE)),
        "dotprod": bool(is_present(_PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE)),
    }


def _getauxval(kind: int) -> int:
    """A word that the kernel gave this process at its start; 0 where there is none (getauxval(3))."""
    function = ctypes.CDLL(None).getauxval
    function.argtypes, function.restype = [ctypes.c_ulong], ctypes.c_ulong
    return function(kind)
