"""Tiny models for the tests of this floor."""

from __future__ import annotations

import numpy as np
import pytest

from . import tiny


@pytest.fixture(scope="session")
def ids() -> list[int]:
    """More tokens than a window, a block of the cache and a span of attention have."""
    return np.random.default_rng(7).integers(3, tiny.N_VOCAB, 600).tolist()


@pytest.fixture(scope="session")
def llama() -> tiny.Checkpoint:
    return tiny.llama()


@pytest.fixture(scope="session")
def gemma3() -> tiny.Checkpoint:
    return tiny.gemma3()
