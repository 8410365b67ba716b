from __future__ import annotations

import numpy as np
import pytest

import edgellm
from edgellm.errors import UsageError
from edgellm.evaluate import Distance, divergence, perplexity
from edgellm.evaluate.scores import compare, log_sum
from tests.arch import tiny

from .conftest import N_CTX
from .oracle import error, log_softmax, scored

# Exponentials and differences of logits are float32 (6e-8 of them, and they are up to some tens); sums are float64.
ROUNDINGS = 2e-6


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.exp(p) * (p - q)).sum(axis=1)


@pytest.mark.parametrize("n_vocab", [1, 2, 33, 50_000])
@pytest.mark.parametrize("offset", [0, 1000])
def test_a_row_is_compared_as_in_float64(n_vocab: int, offset: float) -> None:
    rng = np.random.default_rng(n_vocab)
    base = (5 * rng.standard_normal((4, n_vocab)) + offset).astype(np.float32)
    for noise in (0.01, 1, 30):
        own = (base + noise * rng.standard_normal(base.shape)).astype(np.float32)
        expected = kl(log_softmax(base), log_softmax(own))
        for p, q, divergence_of_row in zip(base, own, expected, strict=True):
            found = compare(p, q)
            assert found.divergence == pytest.approx(divergence_of_row, rel=ROUNDINGS, abs=ROUNDINGS)
            assert (found.base_sum, found.own_sum) == (log_sum(p), log_sum(q))
            assert float(p[0]) - found.base_sum == pytest.approx(log_softmax(p[None])[0, 0], rel=ROUNDINGS, abs=1e-6)


def test_the_same_up_to_a_constant_is_no_divergence() -> None:
    row = np.arange(-40, 20, 1 / 16, dtype=np.float32)
    assert compare(row, row).divergence == 0
    assert compare(row, row + 512).divergence < ROUNDINGS


def test_distance_between_logits() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((200, 50), np.float32)
    own = base + rng.standard_normal(base.shape, np.float32)
    found = Distance.between(base, own)
    expected = kl(log_softmax(base), log_softmax(own))
    same = base.argmax(axis=1) == own.argmax(axis=1)
    assert found.mean == pytest.approx(expected.mean(), rel=ROUNDINGS)
    assert found.mean_error == pytest.approx(error(expected), rel=ROUNDINGS)
    assert found.median == pytest.approx(np.median(expected), rel=ROUNDINGS)
    assert found.percentile_99 == pytest.approx(np.percentile(expected, 99), rel=ROUNDINGS)
    assert found.maximum == pytest.approx(expected.max(), rel=ROUNDINGS)
    assert 0 < found.same_top == same.mean() < 1
    assert found.same_top_error == pytest.approx(np.sqrt(same.mean() * (1 - same.mean()) / 199))


def test_divergence_of_two_models(base, small, ids) -> None:
    found = divergence(small, base, ids, N_CTX)
    p, tokens = scored(base.logits, base.tokenizer, ids, N_CTX)
    q, _ = scored(small.logits, base.tokenizer, ids, N_CTX)
    expected = kl(p, q)
    assert expected.mean() > 1e-3  # else there is nothing to see
    assert found.mean == pytest.approx(expected.mean(), rel=1e-5)
    assert found.same_top == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    at = np.arange(len(tokens)), tokens
    changes = np.exp(q[at]) - np.exp(p[at])
    assert found.rms_probability_difference == pytest.approx(np.sqrt(np.square(changes).mean()), rel=1e-5)
    assert found.ln_ratio == pytest.approx((p[at] - q[at]).mean(), rel=1e-4)
    assert found.ln_ratio_error == pytest.approx(error(p[at] - q[at]), rel=1e-4)
    assert found.ln_ratio == pytest.approx(np.log(found.perplexity / found.base_perplexity))
    for model, value, value_error in (
        (small, found.perplexity, found.perplexity_error),
        (base, found.base_perplexity, found.base_perplexity_error),
    ):
        alone = perplexity(model, ids, N_CTX)
        assert (value, value_error) == (pytest.approx(alone.perplexity), pytest.approx(alone.perplexity_error))
    assert (found.n_windows, found.n_scored) == (2, len(tokens))
    assert set(found.as_dict()) > {"mean", "median", "percentile_99", "maximum", "same_top", "ln_ratio"}


def test_a_model_is_at_no_distance_from_itself(base, ids) -> None:
    calls = []
    found = divergence(base, base, ids, N_CTX, 1, progress=lambda *call: calls.append(call))
    assert (found.mean, found.maximum, found.same_top, found.rms_probability_difference) == (0, 0, 1, 0)
    assert (found.ln_ratio, found.ln_ratio_error) == (0, 0)
    assert calls == [(0, 1, None), (1, 1, 0.0)]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda tokens: [*tokens, "more"], r"other\.gguf has 321 tokens and f32\.gguf 320"),
        (lambda tokens: [*tokens[:-1], "other"], r"token 319 is 'other' to other\.gguf and '▁w\d+' to f32\.gguf"),
    ],
)
def test_other_vocabularies_are_refused(checkpoint, base, ids, change, line: str, tmp_path) -> None:
    n_more = len(change(["x"] * 3)) - 3
    metadata = dict(checkpoint.metadata)
    metadata["tokenizer.ggml.tokens"] = change(metadata["tokenizer.ggml.tokens"])
    for key in ("scores", "token_type"):
        metadata[f"tokenizer.ggml.{key}"] = metadata[f"tokenizer.ggml.{key}"] + [1] * n_more
    weights = dict(checkpoint.tensors)
    for name in ("token_embd.weight", "output.weight"):
        weights[name] = np.concatenate([weights[name], weights[name][:n_more]])
    path = tiny.Checkpoint(checkpoint.model, metadata, weights).save(tmp_path / "other.gguf")
    with edgellm.load(path, n_ctx=N_CTX) as other, pytest.raises(UsageError, match=line):
        divergence(other, base, ids, N_CTX)
