"""A text has the same logits, to the bit, however it is cut into batches and however many threads compute it."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm

from . import tiny

CASES = [("F32", "int8"), ("BF16", "int8"), ("Q4_K", "int8"), ("Q8_0", "int8"), ("gemma3", "int8"),
         ("Q4_K", "f32"), ("Q3_K", "f32"), ("IQ4_NL", "f32"), ("gemma3", "f32")]  # fmt: skip


def small(name: str) -> tuple[tiny.Checkpoint, str]:
    if name == "gemma3":
        return tiny.gemma3(), "Q8_0"
    return tiny.llama(hidden_size=256, intermediate_size=512, num_attention_heads=16), name


@pytest.mark.parametrize(("name", "activations"), CASES)
def test_batches_and_threads(name: str, activations: str, ids, tmp_path) -> None:
    checkpoint, format_name = small(name)
    path = checkpoint.save(tmp_path / "tiny.gguf", format_name)

    def logits(n_batch: int, n_threads: int) -> np.ndarray:
        with edgellm.load(path, n_batch=n_batch, n_threads=n_threads, activations=activations) as model:
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
