"""Which instruction set runs, and what a person hears who asks for another."""

from __future__ import annotations

import platform

import pytest

from edgellm.errors import UsageError
from edgellm.kernels import isa
from edgellm.kernels.isa import base


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    """Choose on a CPU with these features, with EDGELLM_ISA set."""

    def choose(wanted: str, *features: str) -> isa.Isa:
        monkeypatch.setattr(isa, "host", lambda: ("some-cpu", dict.fromkeys(features, True)))
        monkeypatch.setenv("EDGELLM_ISA", wanted)
        return isa.choose.__wrapped__()

    return choose


AVX2_CPU = isa.AVX2.portable.needs  # type: ignore[union-attr]
AVX512_CPU = (*AVX2_CPU, "avx512f", "avx512bw", "avx512vl", "avx512vnni")


def test_the_best_that_the_cpu_has(ask) -> None:
    assert ask("", *AVX512_CPU) is isa.AVX512
    assert ask("", *AVX2_CPU, "avxvnni") is isa.AVX_VNNI
    assert ask("", *AVX2_CPU) is isa.AVX2
    # LLVM emits all of x86-64-v3 there, so a CPU (or a virtual machine) that hides a part of it gets plain vectors.
    for hidden in ("fma", "f16c", "bmi2"):
        assert ask("", *(feature for feature in AVX2_CPU if feature != hidden)) is isa.GENERIC
    assert ask("", "neon", "dotprod") is isa.NEON
    assert ask("", "neon") is isa.GENERIC


def test_avx_vnni_differs_from_avx2_in_products_of_integers_alone() -> None:
    """So tests of other kernels run on one of them (`DISTINCT`)."""
    first, second = isa.AVX_VNNI, isa.AVX2
    for name in ("lanes", "n_registers", "tile_tokens"):
        assert getattr(first, name) == getattr(second, name)
    assert first.vocabulary.__bases__ == second.vocabulary.__bases__
    own = {name for one in (first, second) for name in vars(one.vocabulary) if not name.startswith("__")}
    products = {"dot_u8_s8", "dot_pairs", "byte_pairs", "pair_sums"}
    assert own == products | {"byte_sum", "centres_large", "byte_operand"}


def test_the_one_that_is_asked_for(ask) -> None:
    for name in ("avx512", "avxvnni", "avx2", "generic"):
        assert ask(name, *AVX512_CPU).name == name


def test_an_unknown_name(ask) -> None:
    with pytest.raises(
        UsageError,
        match=r"^EDGELLM_ISA='sse9' is not an instruction set that edgellm knows; this CPU can run: avx2, generic$",
    ):
        ask("sse9", *AVX2_CPU)


def test_one_that_the_cpu_lacks(ask) -> None:
    with pytest.raises(
        UsageError, match=r"^EDGELLM_ISA='avx512' is not supported by this CPU; this CPU can run: avx2, generic$"
    ):
        ask("avx512", *AVX2_CPU)


@pytest.mark.parametrize("one", [one for one in isa.ALL if one.portable], ids=lambda one: one.name)
def test_what_ships_has_all_that_its_instruction_set_needs(one: isa.Isa) -> None:
    """The words it compiles are there on every CPU that may run it, and the target is one that LLVM knows."""
    assert one.portable is not None
    assert one.needs(dict.fromkeys(one.portable.needs, True))
    assert one.portable.lacks({}) == list(one.portable.needs)
    assert one.for_family().target("some-cpu", {}) == one.portable.target()
    assert one.for_family(["more"]).target("some-cpu", {})[1].count("+more") == 1
    if platform.machine() == "x86_64":
        _, features = isa.host()
        assert set(one.portable.needs) <= set(features)


@pytest.mark.parametrize(
    ("cpu", "level"),
    [("skylake-avx512", 2), ("sapphirerapids", 2), ("haswell", 2), ("gracemont", 2), ("sierraforest", 2),
     ("znver5", 1), ("x86-64-v4", 1), ("x86-64", 1), ("apple-m1", 1), ("neoverse-v2", 1), ("generic", 1)],
)  # fmt: skip
def test_where_streams_are_prefetched_to(cpu: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second level of cache on Intel's CPUs alone, and what is compiled for a family may run on others."""
    monkeypatch.setattr(base, "host", lambda: (cpu, {}))
    assert {one.stream_level for one in isa.ALL} == {level}
    assert {one.for_family().stream_level for one in isa.ALL if one.portable} == {1}
