"""Fixtures for all floors: real models, and the folder of extra conformance files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of extra conformance files: $EDGELLM_SHARED, or ../shared beside the repository."""
    folder = Path(os.environ.get("EDGELLM_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"extra conformance files are not here ({folder}); EDGELLM_SHARED names another place")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, 98 MB; fetched once into the user's own EDGELLM_HOME."""
    return _pulled("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M in Q4_K_M, 253 MB; fetched once into the user's own EDGELLM_HOME."""
    return _pulled("gemma3-270m")


def _pulled(name: str) -> Path:
    from edgellm import hub

    return hub.pull(name)
