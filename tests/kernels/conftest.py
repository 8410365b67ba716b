"""The instruction sets of this machine, and their kernels: compiled once, found again in the next session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgellm.kernels import isa

from .compiled import Compiled

AVAILABLE = isa.available()
# AVX-VNNI is AVX2 with another product of integers (see `test_isa`): kernels without one are tested on either of them.
DISTINCT = [one for one in AVAILABLE if one is not isa.AVX_VNNI or one is AVAILABLE[0]]


@pytest.fixture(scope="session")
def compiled_for() -> Callable[[isa.Isa], Compiled]:
    """The kernels of an instruction set, the same ones for the whole session."""
    found: dict[str, Compiled] = {}
    return lambda wanted: found.setdefault(wanted.name, Compiled(wanted))


@pytest.fixture(params=DISTINCT, ids=lambda one: one.name)
def compiled(request: pytest.FixtureRequest, compiled_for: Callable[[isa.Isa], Compiled]) -> Compiled:
    """The instruction sets of this machine in turn, all that differ in products and sums of floats."""
    return compiled_for(request.param)


# For some tests of each kind of kernels that multiply integers: how they do is tested in `test_linear`.
on_all = pytest.mark.parametrize("compiled", AVAILABLE, ids=lambda one: one.name, indirect=True)
