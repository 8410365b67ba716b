"""Tiny models of every family against `transformers` in float32."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm
from edgellm.kernels.records import SPAN_TOKENS
from tests.arch import tiny

# Keys and values are float16 in the cache, and sums run in another order: about 2**-11 of logits around 10.
F32_TOLERANCE = 0.03
# Longer than a cache block, than a span of attention and than every sliding window here.
N_TOKENS = SPAN_TOKENS + 70

CASES = {
    "llama": (lambda: tiny.llama(), {}),
    "llama, all heads alike": (lambda: tiny.llama(num_key_value_heads=4), {}),
    "llama, one key-value head": (lambda: tiny.llama(num_key_value_heads=1), {}),
    "llama, tied embeddings": (lambda: tiny.llama(tie_word_embeddings=True), {}),
    "llama, wide heads": (lambda: tiny.llama(head_dim=48), {}),
    "llama, linear rope scaling": (
        lambda: tiny.llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    ),
    "gemma3": (lambda: tiny.gemma3(), {}),
    "gemma3, window of one block": (lambda: tiny.gemma3(sliding_window=64), {}),
    "gemma3, window of 300": (lambda: tiny.gemma3(sliding_window=300, num_key_value_heads=2), {}),
}


def ids_of(n: int) -> list[int]:
    return np.random.default_rng(1).integers(3, tiny.N_VOCAB, n).tolist()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, tmp_path):
    make, metadata = CASES[case]
    model, ids = make(), ids_of(N_TOKENS)
    path = tiny.write(model, tmp_path / "tiny.gguf", metadata=metadata)
    with edgellm.load(path, n_threads=2, n_batch=128) as loaded:
        ours = loaded.logits(ids)
    theirs = tiny.reference_logits(model, ids)
    assert np.abs(ours - theirs).max() < F32_TOLERANCE * max(1.0, theirs.std())


def test_llama3_rope_factors(tmp_path):
    parameters = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 10000.0,
    }  # fmt: skip
    model, ids = tiny.llama(rope_parameters=parameters), ids_of(200)
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert factors.max() > 7  # the long wavelengths are slowed down
    path = tiny.write(model, tmp_path / "tiny.gguf", more={"rope_freqs.weight": factors})
    with edgellm.load(path, n_threads=1) as loaded:
        ours = loaded.logits(ids)
    theirs = tiny.reference_logits(model, ids)
    assert np.abs(ours - theirs).max() < F32_TOLERANCE * max(1.0, theirs.std())


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
@pytest.mark.parametrize("format_name", ["F32", "Q8_0", "Q4_1"])
def test_every_way_to_run_a_text_gives_the_same_bits(make, format_name, tmp_path):
    ids = ids_of(N_TOKENS)
    path = tiny.write(make(), tmp_path / "tiny.gguf", format_name)
    with edgellm.load(path, n_threads=1, n_batch=512) as whole:
        expected = whole.logits(ids)
    for n_threads, n_batch in ((2, 512), (3, 37), (2, 1), (2, 5)):
        with edgellm.load(path, n_threads=n_threads, n_batch=n_batch) as other:
            np.testing.assert_array_equal(other.logits(ids), expected, err_msg=f"{n_threads=} {n_batch=}")
