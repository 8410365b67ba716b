"""Kernels for programs: the best instruction set of this machine, kept in the user's own kernel store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from edgellm.graph import Team
from edgellm.graph.team import KERNELS
from edgellm.kernels.isa import choose
from edgellm.kernels.store import KernelStore

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

    def make(n_threads: int) -> Team:
        teams.append(Team(store, n_threads, MAX_OPS))
        return teams[-1]

    yield make
    for team in teams:
        team.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgellm-")]
