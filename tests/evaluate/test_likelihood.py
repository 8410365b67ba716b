from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.engine import model as engine_model
from edgellm.errors import ContextOverflowError, FileProblem, UsageError
from edgellm.evaluate import perplexity
from tests.arch import tiny

from .conftest import N_CTX
from .oracle import error, scored

TEXT = Path(__file__).parents[2] / "edgellm" / "evaluate" / "ordinary.txt"
# Exponentials are float32 (6e-8), their sums and all else float64.
ROUNDINGS = 1e-6
# What the logits of llama.cpp (llama-cpp-python 0.3.36) give for the same windows.
LLAMA_CPP_PERPLEXITY = 21.763


def test_perplexity_is_exp_of_the_mean_negative_log_likelihood(base, ids) -> None:
    found = perplexity(base, ids, N_CTX)
    rows, tokens = scored(base.logits, base.tokenizer, ids, N_CTX)
    nlls = -rows[np.arange(len(tokens)), tokens]
    expected = np.exp(nlls.mean())
    assert found.perplexity == pytest.approx(expected, rel=ROUNDINGS)
    assert found.perplexity_error == pytest.approx(expected * error(nlls), rel=ROUNDINGS)
    assert (found.n_windows, found.n_ctx, found.n_scored) == (2, N_CTX, 2 * (N_CTX // 2 - 1))
    assert found.tokens_per_second == pytest.approx(2 * N_CTX / found.seconds)
    assert found.as_dict()["perplexity"] == found.perplexity


def test_perplexity_is_that_of_transformers(checkpoint, base, ids) -> None:
    rows, tokens = scored(checkpoint.logits, base.tokenizer, ids, N_CTX)
    expected = np.exp(-rows[np.arange(len(tokens)), tokens].mean())
    assert perplexity(base, ids, N_CTX).perplexity == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n_ctx", [8, 9, 47])
def test_windows_of_odd_lengths_and_logits_a_row_at_a_time(base, ids, n_ctx: int, monkeypatch) -> None:
    whole = perplexity(base, ids, n_ctx)
    rows, tokens = scored(base.logits, base.tokenizer, ids, n_ctx)
    assert whole.n_scored == len(tokens) == whole.n_windows * (n_ctx - 1 - n_ctx // 2)
    assert whole.perplexity == pytest.approx(np.exp(-rows[np.arange(len(tokens)), tokens].mean()), rel=ROUNDINGS)
    monkeypatch.setattr(engine_model, "PIECE_BYTES", 1)
    assert perplexity(base, ids, n_ctx).perplexity == whole.perplexity


def test_progress_tells_the_value_so_far(base, ids) -> None:
    calls = []
    found = perplexity(base, ids, N_CTX, progress=lambda *call: calls.append(call))
    first = perplexity(base, ids, N_CTX, n_windows=1)
    assert first.n_windows == 1
    assert calls == [(0, 2, None), (1, 2, first.perplexity), (2, 2, found.perplexity)]


def test_refusals(base, ids) -> None:
    with pytest.raises(UsageError, match="the text has 40 tokens and one window needs 48"):
        perplexity(base, ids[:40], N_CTX)
    with pytest.raises(ContextOverflowError, match="the context holds 48"):
        perplexity(base, ids, N_CTX + 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_a_damaged_model_is_told(checkpoint, ids, bad: float, tmp_path) -> None:
    weights = checkpoint.tensors | {"output.weight": checkpoint.tensors["output.weight"].copy()}
    weights["output.weight"][7, :] = bad
    path = tiny.Checkpoint(checkpoint.model, checkpoint.metadata, weights).save(tmp_path / "bad.gguf")
    with edgellm.load(path, n_ctx=N_CTX) as model, pytest.raises(FileProblem, match=r"bad\.gguf: its logits are no"):
        perplexity(model, ids, N_CTX)


def test_a_real_model_beside_llama_cpp(smollm2) -> None:
    """Both round activations, each in its own way, so each is compared with float32."""
    found = {}
    for activations in ("f32", "int8"):
        with edgellm.load(smollm2, n_ctx=256, activations=activations) as model:
            ids = model.tokenize(TEXT.read_text(encoding="utf-8"), add_special=True)
            measured = perplexity(model, ids, 256, n_windows=2)
            assert measured.n_scored == 254
            found[activations] = measured.perplexity
    assert found["f32"] == pytest.approx(LLAMA_CPP_PERPLEXITY, rel=0.01)
    assert found["int8"] == pytest.approx(found["f32"], rel=0.005)
