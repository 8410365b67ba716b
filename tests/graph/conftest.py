"""Kernels for programs: the best instruction set of this machine, kept in the user's own kernel store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Lowered, Program, Target, Team, Tuning, Value, lower
from edgellm.graph.lowering import linear as lowering_of_linears
from edgellm.graph.ops import Rows
from edgellm.graph.program import aligned
from edgellm.graph.team import KERNELS
from edgellm.kernels.isa import choose
from edgellm.kernels.store import KernelStore
from edgellm.quants import FORMATS

MAX_OPS = 64


@pytest.fixture(scope="session")
def store() -> KernelStore:
    store = KernelStore(choose())
    store.load(KERNELS)
    return store


@pytest.fixture
def team_of(store: KernelStore) -> Iterator[Callable[[int], Team]]:
    """Makes teams of n threads, and sees that their threads are gone in the end."""
    teams: list[Team] = []
    before = {*threading.enumerate()}  # other tests may share a model that is still loaded

    def make(n_threads: int) -> Team:
        teams.append(Team(store, n_threads, MAX_OPS))
        return teams[-1]

    yield make
    for team in teams:
        team.close()
    assert {*threading.enumerate()} <= before


@pytest.fixture
def no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops by the names that they have on most CPUs."""
    monkeypatch.setattr(lowering_of_linears, "has_amx", lambda isa: False)


def lowered(graph: Graph, n_threads: int = 1, taps=(), given=(), square_sums=None, **target: Any) -> Lowered:
    """A graph's ops for this machine."""
    return lower(graph, Target(choose(), Tuning(n_threads), **target), taps, given, square_sums)


def program_of(
    ops: Lowered,
    store: KernelStore,
    team: Team,
    capacity: int = 16,
    inputs: Mapping[Value, np.ndarray] | None = None,
    tables: Mapping[str, int] | None = None,
) -> Program:
    """Ops ready to run; inputs: what `rows_for` made, which must stay as long as the program."""
    store.load(ops.kernels)
    addresses = {value: rows.ctypes.data for value, rows in (inputs or {}).items()}
    return Program(ops, store, Batch(capacity, ops), team, tables, addresses)


def rows_for(value: Value, n_tokens: int) -> np.ndarray:
    """Memory for a value from outside: float32 [n_tokens, its width rounded up]."""
    stride = Rows(value.width).stride
    rows = aligned(n_tokens * stride * 4).view(np.float32).reshape(n_tokens, stride)
    rows[...] = 0
    return rows


def tensor(name: str, *shape: int, format_name: str = "F32", seed: int = 3) -> Tensor:
    """Random weights, of a size that keeps what they multiply."""
    x = np.random.default_rng(seed).standard_normal(shape, np.float32) / shape[-1] ** 0.5
    fmt = FORMATS[format_name]
    return Tensor(name, shape, fmt, fmt.quantize(x))


class Same(dict):
    """The same for all windows."""

    def __init__(self, value) -> None:
        self.value = value

    def __missing__(self, window):
        return self.value
