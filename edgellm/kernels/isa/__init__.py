"""Which instruction set runs: chosen once at start, forced by `EDGELLM_ISA`, never tested for inside a kernel."""

from __future__ import annotations

import os

from edgellm.errors import UsageError
from edgellm.kernels.isa.arm import NEON
from edgellm.kernels.isa.base import Isa, Portable
from edgellm.kernels.isa.cpu import host
from edgellm.kernels.isa.generic import GENERIC
from edgellm.kernels.isa.x86 import AVX2, AVX512, AVX_VNNI

ALL = (AVX512, AVX_VNNI, AVX2, NEON, GENERIC)  # best first

__all__ = ["ALL", "Isa", "Portable", "available", "choose", "describe", "host"]


def available() -> list[Isa]:
    """The instruction sets that this CPU can run, best first."""
    _, features = host()
    return [isa for isa in ALL if isa.needs(features)]


def choose() -> Isa:
    """The best instruction set, or the one that `EDGELLM_ISA` names.

    Raises UsageError when that name is unknown or this CPU lacks it.
    """
    usable = available()
    name = os.environ.get("EDGELLM_ISA", "")
    if not name:
        return usable[0]
    for isa in usable:
        if isa.name == name:
            return isa
    names = ", ".join(isa.name for isa in usable)
    known = any(isa.name == name for isa in ALL)
    problem = "is not supported by this CPU" if known else "is not an instruction set that edgellm knows"
    raise UsageError(f"EDGELLM_ISA={name!r} {problem}; this CPU can run: {names}")


def describe() -> str:
    """One line for `edgellm info`: the instruction set in use, and what else this CPU can run."""
    chosen = choose()
    others = ", ".join(isa.name for isa in available() if isa is not chosen)
    return f"{chosen.name} ({chosen.title}); also available: {others}"
