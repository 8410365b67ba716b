"""The instruction sets of this machine, and their kernels: compiled once, found again in the next session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgellm.kernels import isa
from edgellm.quants import BlockFormat

from .compiled import Compiled

AVAILABLE = isa.available()
# AVX-VNNI is AVX2 with another product of integers (see `test_isa`): kernels without one are tested on either of them.
DISTINCT = [one for one in AVAILABLE if one is not isa.AVX_VNNI or one is AVAILABLE[0]]

# Every format is tried on the best instruction set of the machine, these on the others too. There, `tools/check --all`
# tries the rest: each word of an instruction set is tested in some format.
COMMON = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")


# On GENERIC, which few CPUs need, tiles of Q6_K take half a minute to compile and attention over a cache of integers a
# quarter; AVX-VNNI is nearly AVX2. Of what is slow to compile, the usual run tries one kind there.
SELDOM = [one for one in AVAILABLE[1:] if one in (isa.GENERIC, isa.AVX_VNNI)]


def is_usual(one: isa.Isa, fmt: BlockFormat) -> bool:
    return one is AVAILABLE[0] or fmt.name in COMMON


def thorough_unless(usual: bool, *values: object) -> Any:
    """Parameters of a test, for `tools/check --all` alone where they are not the usual ones."""
    return pytest.param(*values, marks=() if usual else pytest.mark.thorough)


@pytest.fixture(scope="session")
def compiled_for() -> Callable[[isa.Isa], Compiled]:
    """The kernels of an instruction set, the same ones for the whole session."""
    found: dict[str, Compiled] = {}
    return lambda wanted: found.setdefault(wanted.name, Compiled(wanted))


@pytest.fixture(params=DISTINCT, ids=lambda one: one.name)
def compiled(request: pytest.FixtureRequest, compiled_for: Callable[[isa.Isa], Compiled]) -> Compiled:
    """The instruction sets of this machine in turn, all that differ in products and sums of floats."""
    return compiled_for(request.param)


# For what is as another op or format, which is tested on all of them.
usually_on_the_best = pytest.mark.parametrize(
    "compiled", [thorough_unless(one is AVAILABLE[0], one) for one in DISTINCT], ids=lambda one: one.name, indirect=True
)

# For some tests of each kind of kernels that multiply integers: how they do is tested in `test_linear`.
on_all = pytest.mark.parametrize("compiled", AVAILABLE, ids=lambda one: one.name, indirect=True)
