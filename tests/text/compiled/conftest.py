"""Tokenizers that encode every text by kernels, on every instruction set."""

from __future__ import annotations

import pytest

from edgellm.kernels.isa import Isa
from edgellm.kernels.store import KernelStore
from edgellm.text.compiled import turn
from edgellm.text.compiled.words import kernels
from tests.kernels.conftest import DISTINCT


@pytest.fixture(autouse=True)
def _no_model_runs() -> None:
    """Here kernels are what is tried."""


@pytest.fixture(params=DISTINCT, ids=lambda isa: isa.name)
def store(request: pytest.FixtureRequest) -> KernelStore:
    isa: Isa = request.param
    store = KernelStore(isa)
    store.load(kernels())
    return store


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch, store: KernelStore) -> None:
    """Every text goes through kernels, whatever its size."""
    monkeypatch.setattr(turn, "READY_FROM", 0)
    monkeypatch.setattr(turn, "SHORT", 0)
    monkeypatch.setattr(turn, "_store", lambda: store)
