"""A text has the same logits, to the bit, however it is cut into batches and however many threads compute it."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm

from . import tiny


def small(name: str) -> tuple[tiny.Checkpoint, str]:
    if name == "gemma3":
        return tiny.gemma3(), "F32"
    return tiny.llama(hidden_size=256, intermediate_size=512, num_attention_heads=16), name


@pytest.mark.parametrize("name", ["F32", "BF16", "Q4_K", "Q8_0", "gemma3"])
def test_batches_and_threads(name, ids, tmp_path) -> None:
    checkpoint, format_name = small(name)
    path = checkpoint.save(tmp_path / "tiny.gguf", format_name)

    def logits(n_batch: int, n_threads: int) -> np.ndarray:
        with edgellm.load(path, n_batch=n_batch, n_threads=n_threads) as model:
            return model.logits(ids)

    whole = logits(600, 1)
    assert np.isfinite(whole).all()
    for n_batch, n_threads in [(1, 1), (2, 2), (3, 1), (37, 2), (64, 3), (255, 2), (512, 1), (600, 2)]:
        np.testing.assert_array_equal(logits(n_batch, n_threads), whole, err_msg=f"{n_batch=} {n_threads=}")


def test_one_model_gives_the_same_bits_again(ids, llama, tmp_path) -> None:
    with edgellm.load(llama.save(tmp_path / "tiny.gguf"), n_threads=2) as model:
        first = model.logits(ids)
        model.logits(ids[100:])
        np.testing.assert_array_equal(model.logits(ids), first)
        np.testing.assert_array_equal(model.logits(ids[:70]), first[:70])
