from __future__ import annotations

from pathlib import Path

import pytest

import edgellm
from tests.arch import tiny


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory) -> Path:
    """A random Llama of two layers, with a context of 1,024 tokens."""
    return tiny.llama().save(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def model(tiny_path):
    with edgellm.load(tiny_path, n_threads=2) as loaded:
        yield loaded
