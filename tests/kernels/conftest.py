"""The instruction sets of this machine, and their kernels: compiled once, found again in the next session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgellm.kernels import isa

from .compiled import Compiled

AVAILABLE = isa.available()


@pytest.fixture(scope="session")
def compiled_for() -> Callable[[isa.Isa], Compiled]:
    """The kernels of an instruction set, the same ones for the whole session."""
    found: dict[str, Compiled] = {}
    return lambda wanted: found.setdefault(wanted.name, Compiled(wanted))


@pytest.fixture(params=AVAILABLE, ids=lambda one: one.name)
def compiled(request: pytest.FixtureRequest, compiled_for: Callable[[isa.Isa], Compiled]) -> Compiled:
    """Every instruction set of this machine in turn."""
    return compiled_for(request.param)
