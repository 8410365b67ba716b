"""What is known of a CPU: recorded answers of systems become the features that kernels are chosen and compiled by."""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from edgellm.kernels import isa
from edgellm.kernels.isa import GENERIC, NEON, cpu

# /proc/cpuinfo of these names the same features; the words are AT_HWCAP of the auxiliary vector.
RASPBERRY_PI_4 = 0x887  # Cortex-A72: fp asimd evtstrm crc32 cpuid
RASPBERRY_PI_5 = 0x119FFF  # Cortex-A76: ... asimdhp cpuid asimdrdm lrcpc dcpop asimddp
GRAVITON_2 = 0x119FFF & ~(1 << 13) | 1 << 28  # Neoverse N1, with ssbs
DOT, PLAIN, NONE = (
    {"neon": True, "dotprod": True},
    {"neon": True, "dotprod": False},
    {"neon": False, "dotprod": False},
)


@pytest.mark.parametrize(
    ("hwcap", "found"), [(RASPBERRY_PI_4, PLAIN), (RASPBERRY_PI_5, DOT), (GRAVITON_2, DOT), (0, NONE)]
)
def test_linux(hwcap: int, found: dict[str, bool]) -> None:
    assert cpu.of_linux(hwcap) == found


@pytest.mark.parametrize(
    ("told", "found"),
    [({"hw.optional.arm.FEAT_DotProd": 1}, DOT), ({"hw.optional.arm.FEAT_DotProd": 0}, PLAIN), ({}, PLAIN)],
)
def test_macos(told: dict[str, int], found: dict[str, bool]) -> None:
    assert cpu.of_macos(told.get) == found


@pytest.mark.parametrize(("present", "found"), [({19, 43, 30}, DOT), ({19, 30}, PLAIN), (set(), NONE)])
def test_windows(present: set[int], found: dict[str, bool]) -> None:
    assert cpu.of_windows(lambda number: number in present) == found


@pytest.fixture
def on_arm(monkeypatch: pytest.MonkeyPatch):
    """Choose on an ARM machine: what LLVM says there, and the word AT_HWCAP of Linux."""

    def choose(said: dict[str, bool], hwcap: int, name: str = "cortex-a76") -> isa.Isa:
        monkeypatch.setattr(llvm, "get_process_triple", lambda: "aarch64-unknown-linux-gnu")
        monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: said)
        monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: name)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(cpu, "_getauxval", {16: hwcap}.__getitem__)
        cpu.host.cache_clear()
        cpu.architecture.cache_clear()
        return isa.choose()

    monkeypatch.delenv("EDGELLM_ISA", raising=False)
    yield choose
    cpu.host.cache_clear()
    cpu.architecture.cache_clear()


OF_LINUX = {"fp-armv8": True, "neon": True, "crc": True, "lse": True}  # LLVM's own list has no dotprod there


@pytest.mark.parametrize("said", [{}, OF_LINUX, {**OF_LINUX, "dotprod": False}], ids=["nothing", "some", "wrong"])
def test_neon_is_chosen_and_llvm_is_told(on_arm, said: dict[str, bool]) -> None:
    chosen = on_arm(said, RASPBERRY_PI_5)
    assert chosen is NEON
    name, features = chosen.target(*isa.host())
    assert name == "cortex-a76"
    assert {"+neon", "+dotprod"} <= set(features.split(","))
    assert "-dotprod" not in features


@pytest.mark.parametrize("said", [{}, OF_LINUX, {**OF_LINUX, "dotprod": True}], ids=["nothing", "some", "wrong"])
def test_a_cpu_without_the_instructions_has_plain_vectors(on_arm, said: dict[str, bool]) -> None:
    """The system knows better: a feature that it does not name cannot be used."""
    assert on_arm(said, RASPBERRY_PI_4) is GENERIC
    assert isa.available() == [GENERIC]


def test_what_llvm_is_told_it_uses(on_arm) -> None:
    """The target that comes of it makes machine code with SDOT (Arm ARM C7.2.279)."""
    _, features = on_arm({}, RASPBERRY_PI_5).target(*isa.host())
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(features=features)
    code = """
        target triple = "aarch64-unknown-linux-gnu"
        declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
        define <4 x i32> @dot(<4 x i32> %sum, <16 x i8> %a, <16 x i8> %b) {
          %out = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %sum, <16 x i8> %a, <16 x i8> %b)
          ret <4 x i32> %out
        }"""
    assert "sdot\tv0.4s, v1.16b, v2.16b" in target.emit_assembly(llvm.parse_assembly(code))


@pytest.mark.skipif(sys.platform != "linux", reason="the auxiliary vector is Linux's")
@pytest.mark.parametrize("kind", [6, 17], ids=["size of a page", "ticks of the clock"])
def test_words_of_the_auxiliary_vector(kind: int) -> None:
    """As the kernel lists them; the C library of x86 makes a word AT_HWCAP of its own."""
    vector = dict(struct.iter_unpack("@LL", Path("/proc/self/auxv").read_bytes()))
    assert cpu._getauxval(kind) == vector[kind] > 0


def test_this_process_knows_its_architecture() -> None:
    bits = 8 * ctypes.sizeof(ctypes.c_void_p)
    assert (bits == 64) == (cpu.architecture() in ("x86_64", "aarch64", "arm64", "ppc64le", "riscv64", "s390x"))
