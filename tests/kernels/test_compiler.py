"""What compiled code consists of: nothing that a later process lacks, and on ARM the instructions meant."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from edgellm.errors import KernelError
from edgellm.kernels import compiler
from edgellm.kernels.isa import GENERIC
from edgellm.kernels.kv_types import KV_TYPES
from edgellm.kernels.numba_settings import plain_numba
from edgellm.kernels.registry import Kernel, all_kernels, find
from edgellm.kernels.staged import Vocabulary
from edgellm.quants import FORMATS

from . import test_linear
from .arm import FORMATS_OF_TILES, arm_object
from .conftest import AVAILABLE, thorough_unless

MIXED = ("q8_0:q4_0", "q4_0:f16")
SOME_FORMATS = ("F16", "Q4_1", "Q6_K", "Q8_0", *KV_TYPES, *MIXED)


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="other baselines have the instruction"
)
def test_code_that_would_call_the_c_library_is_refused() -> None:
    """The plain vocabulary says llvm.fma, which x86-64 without FMA does in libm: only the object shows it."""
    careless = replace(GENERIC, vocabulary=Vocabulary)
    with pytest.raises(KernelError, match=r"linear_f32\.F32 for generic calls fmaf, "):
        compiler.compile_kernel(find("linear_f32", FORMATS["F32"]), careless)


def test_an_object_names_its_kernel() -> None:
    kernel = find("add")
    code = compiler.compile_kernel(kernel, GENERIC)
    assert kernel.symbol.encode() in code


@pytest.mark.parametrize(("lanes", "aligned"), [(4, None), (8, 32), (16, 64)])
def test_stacks_are_aligned_to_registers(lanes: int, aligned: int | None) -> None:
    """All functions of a kernel: whichever of them is inlined into which, what is spilled lies within a cache line."""
    module = compiler._numba_module(find("add"), replace(GENERIC, lanes=lanes))
    functions = [function for function in module.functions if not function.is_declaration]
    assert functions
    expected = [] if aligned is None else [f"alignstack({aligned})"]
    for function in functions:
        attributes = b" ".join(function.attributes).decode()
        assert re.findall(r"alignstack\(\d+\)", attributes) == expected, function.name


@pytest.mark.parametrize("name", ["Q5_0", "Q5_1"])
def test_a_fifth_bit_takes_few_instructions(name: str) -> None:
    """Where a compiler takes out each of 32 bits by itself, code is more than twice as long as for four bits."""
    four, five = (compiler.compile_kernel(find("linear_decode", FORMATS[one]), AVAILABLE[0]) for one in ("Q4_0", name))
    assert len(five) < 1.5 * len(four)


SETTINGS = {
    "NUMBA_DISABLE_JIT": "1",
    "NUMBA_OPT": "0",
    "NUMBA_CPU_NAME": "no-such-cpu",
    "NUMBA_CPU_FEATURES": "+no-such-feature",
    "NUMBA_DEBUG": "1",
    "NUMBA_DEBUGINFO": "1",
    "NUMBA_BOUNDSCHECK": "1",
    "NUMBA_TRACE": "1",
    "NUMBA_NUM_THREADS": "0",
    "NUMBA_CACHE_DIR": "/no/such/folder",
    "NUMBA_CHROME_TRACE": "/no/such/folder/trace",
    "NUMBA_DUMP_HTML": "/no/such/folder/dump",
    "PYTHONOPTIMIZE": "2",
    "PYTHONNOUSERSITE": "1",
}
COMPILE = """
import hashlib, os
from edgellm.kernels.isa import GENERIC
from edgellm.kernels.registry import find
before = dict(os.environ)
from edgellm.kernels import compiler
for name in ("add", "sum_squares"):
    print(hashlib.sha256(compiler.compile_kernel(find(name), GENERIC)).hexdigest())
assert dict(os.environ) == before
"""


def compiled_with(folder: Path, **settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), **settings}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_what_is_set_for_numba_changes_nothing(tmp_path: Path) -> None:
    """Neither that kernels are compiled, nor into what: later starts use them without those settings."""
    (tmp_path / "empty").mkdir()
    plain = compiled_with(tmp_path / "empty")
    assert len(plain.splitlines()) == 2
    assert compiled_with(tmp_path / "empty", **SETTINGS) == plain
    (tmp_path / ".numba_config.yaml").write_text("disable_jit: 1\nopt: '0'\n")
    assert compiled_with(tmp_path, NUMBA_OPT="9") == plain


def test_settings_of_numba_are_a_persons_own_again() -> None:
    from numba.core import config

    config.DISABLE_JIT = 1
    try:
        with plain_numba():
            assert config.DISABLE_JIT == 0
            with plain_numba():
                config.reload_config()
        assert config.DISABLE_JIT == 1
        assert compiler.compile_kernel(find("add"), GENERIC)
        config.reload_config()
        assert config.DISABLE_JIT == 1
    finally:
        config.DISABLE_JIT = 0


def test_numba_only_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither optimizes nor makes machine code of its own, of which nothing would be run."""
    from numba.core import codegen

    compiler.compile_kernel(find("add"), GENERIC)  # what Numba makes for itself, once, is there now

    def not_asked_for(*_: object) -> None:
        raise AssertionError("Numba compiles")

    for name in ("add_module", "finalize_object"):
        monkeypatch.setattr(codegen.JitEngine, name, not_asked_for)
    for name in ("_optimize_functions", "_optimize_final_module"):
        monkeypatch.setattr(codegen.CPUCodeLibrary, name, not_asked_for)
    assert compiler.compile_kernel(find("attention_backward"), GENERIC)


PEOPLES_OWN = """
from concurrent.futures import ThreadPoolExecutor
from numba import njit
from edgellm.kernels.isa import GENERIC
from edgellm.kernels.registry import find

def clamp(low, high):
    @njit
    def inner(x):
        return max(low, min(x, high)) + sum([i for i in range(3)])
    return inner

def kernels():
    from edgellm.kernels.compiler import compile_kernel
    return [compile_kernel(find(name), GENERIC) for name in ("attention_backward", "quantize", "work")]

first, *others = [clamp(i, i + 10) for i in range(20)]
if FIRST == "people":
    assert first(100) == 13
else:
    assert len(kernels()) == 3
with ThreadPoolExecutor(2) as pool:
    made = pool.submit(kernels)
    assert [one(100) for one in others] == [i + 13 for i in range(1, 20)]
    assert len(made.result()) == 3
assert first(100) == 13 and clamp(0.5, 1.5)(1.0) == 4.0
"""


@pytest.mark.parametrize("first", ["people", "kernels"])
def test_peoples_own_functions_are_compiled_as_ever(first: str) -> None:
    """Before, after, and at the same time, by another thread."""
    command = [sys.executable, "-c", f"FIRST = {first!r}\n{PEOPLES_OWN}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_numba_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba.core", None)
    with pytest.raises(KernelError, match="Numba, which compiles kernels, cannot be imported: "), plain_numba():
        pass


def machine_words(code: bytes) -> np.ndarray:
    """ARM instructions, 4 bytes each."""
    sections = {section.name(): section.data() for section in llvm.ObjectFileRef.from_data(code).sections()}
    return np.frombuffer(sections.get(b".ltext") or sections[b".text"], "<u4")


def count_dot_products(code: bytes) -> int:
    """SDOT, with a vector or with one lane of it (Arm ARM C7.2.279)."""
    words = machine_words(code)
    return int(((words & 0xFFE0FC00) == 0x4E809400).sum() + ((words & 0xFFC0F400) == 0x4F80E000).sum())


def is_for_arm(kernel: Kernel) -> bool:
    """Every kernel without a format, and the others of some formats."""
    if kernel.op in ("linear_tiles", "linear_tiles_prefill"):
        return kernel.format.name in FORMATS_OF_TILES[dict(kernel.options).get("n_planes", 1)]
    return kernel.format is None or kernel.format.name in SOME_FORMATS


USUAL_FOR_ARM = ("F16", "Q4_1", "f16", "f32", "q8_0")  # of weights and of caches; `test_neon` runs others


def is_usual_for_arm(kernel: Kernel) -> bool:
    """Every op, for floats and for blocks of integers: to compile takes long, and formats differ in a few words."""
    return kernel.format is None or kernel.format.name in USUAL_FOR_ARM


KERNELS_FOR_ARM = [thorough_unless(is_usual_for_arm(kernel), kernel) for kernel in all_kernels() if is_for_arm(kernel)]


@pytest.mark.parametrize("kernel", KERNELS_FOR_ARM, ids=lambda kernel: kernel.name)
def test_every_kernel_compiles_for_arm(kernel: Kernel) -> None:
    code = arm_object(kernel)
    assert kernel.symbol.encode() in code
    of_experts = ("experts_decode", "experts_prefill", "experts_tiles", "experts_tiles_prefill")
    of_adapters = ("narrow_int8", "quantize_adapted", "linear_tiles_adapted")
    is_integer = kernel.op in (*test_linear.OPS, *of_experts, *of_adapters, "quantize", "multiply_limit")
    assert (count_dot_products(code) > 0) == is_integer
