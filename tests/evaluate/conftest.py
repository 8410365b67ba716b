from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import edgellm
from tests.arch import tiny

N_CTX = 48


@pytest.fixture(scope="module")
def checkpoint() -> tiny.Checkpoint:
    return tiny.llama()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    """A text that fills two windows of N_CTX tokens and a part of a third."""
    return [tiny.BOS, *np.random.default_rng(7).integers(3, tiny.N_VOCAB, 120).tolist()]


@pytest.fixture(scope="module")
def base(checkpoint, tmp_path_factory) -> Iterator[edgellm.Model]:
    with edgellm.load(checkpoint.save(tmp_path_factory.mktemp("models") / "f32.gguf"), n_ctx=N_CTX) as model:
        yield model


@pytest.fixture(scope="module")
def small(checkpoint, tmp_path_factory) -> Iterator[edgellm.Model]:
    """The same model in fewer bits."""
    with edgellm.load(checkpoint.save(tmp_path_factory.mktemp("models") / "q4.gguf", "Q4_0"), n_ctx=N_CTX) as model:
        yield model
