"""Decoders with attention: each is what transformers computes, however a text is cut, and int8 stays near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.engine.kv_cache import Sequence as Cached
from edgellm.engine.runner import Runner, Span
from edgellm.kernels.records import KV_BLOCK
from tests.convert import checkpoints, families

from .test_float32 import in_format

IDS = np.random.default_rng(5).integers(2, 384, 3 * families.WINDOW + 6).tolist()
# Sums of a few hundred float32 products in another order; logits have a standard deviation near 1.
FLOAT32 = 1e-4
# Activations of 8 bits in groups of 32: the mean divergence from float32 of narrow models of random weights.
INT8_KL = 4e-3


@dataclass
class Case:
    """A family's file, and the logits that transformers makes of IDS in float64."""

    path: Path
    expected: np.ndarray
    n_ctx: int | None


@pytest.fixture(scope="module", params=families.FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("family")
    model = families.model_of(request.param)
    model.save_pretrained(folder / "model")
    checkpoints.tokenizer().save_pretrained(folder / "model")
    convert_checkpoint(folder / "model", folder / "model.gguf")
    with torch.no_grad():
        expected = model.double()(torch.tensor([IDS])).logits[0].numpy()
    # What is stretched as far as the context asks for is compared in a context of just this text.
    n_ctx = len(IDS) if "dynamic" in request.param else None
    return Case(folder / "model.gguf", expected, n_ctx)


def logits_of(path: Path, activations: str, n_ctx: int | None) -> np.ndarray:
    with edgellm.load(path, n_threads=1, kv_type="f32", activations=activations, n_ctx=n_ctx) as model:
        return model.logits(IDS)


def test_float32_is_what_transformers_computes(case: Case) -> None:
    assert case.expected.std() > 0.3
    np.testing.assert_allclose(logits_of(case.path, "f32", case.n_ctx), case.expected, atol=FLOAT32)


def test_int8_stays_near_and_is_the_same_bits_however_a_text_is_cut(case: Case, tmp_path: Path) -> None:
    """In one batch, token by token, in odd chunks, with a neighbour, and after fork and trim."""
    path = in_format(case.path, tmp_path / "q8.gguf", "Q8_0")
    exact = logits_of(path, "f32", case.n_ctx)
    with edgellm.load(path, n_threads=2, n_ctx=case.n_ctx) as model:
        runner = model._runner
        text = runner.cache.sequence()
        whole = fed(runner, text, IDS)
        assert 0 < mean_kl(exact, whole) < INT8_KL

        alone = runner.cache.sequence()
        one_by_one = [fed(runner, alone, [token]) for token in IDS[:70]]
        assert np.concatenate(one_by_one).tobytes() == whole[:70].tobytes()
        assert fed(runner, alone, IDS[70:]).tobytes() == whole[70:].tobytes()

        alone.trim(0)
        cuts = [0, 33, 34, 97, len(IDS)]
        odd = [fed(runner, alone, IDS[a:b]) for a, b in pairwise(cuts)]
        assert np.concatenate(odd).tobytes() == whole.tobytes()

        fork = text.fork(101)  # with recurrent layers, as far as there are states
        n = len(fork)
        step = runner.cache.states.shape.step * KV_BLOCK if runner.cache.states else 1
        assert n == 101 // step * step
        assert fed(runner, fork, IDS[n:]).tobytes() == whole[n:].tobytes()
        text.trim(50)
        n, beside = len(text), runner.cache.sequence()
        assert fed(runner, text, IDS[n:90], (beside, IDS[:45])).tobytes() == whole[n:90].tobytes()
        assert fed(runner, beside, IDS[45:90]).tobytes() == whole[45:90].tobytes()
        for sequence in (text, alone, fork, beside):
            sequence.release()


def test_tokens_that_have_no_embeddings_of_layers_are_left_out(tmp_path: Path) -> None:
    """As the last ones of Gemma 3n, which stand for images and sounds."""
    model_class, config_class, _ = families.FAMILIES["gemma3n"]
    torch.manual_seed(1)
    config = families.config_of("gemma3n").to_dict() | {"vocab_size": 400, "vocab_size_per_layer_input": 384}
    model = model_class(config_class(**config)).eval()
    model.save_pretrained(tmp_path / "model")
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    with torch.no_grad():
        expected = model.double()(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "model.gguf", "f32", None), expected[:, :384], atol=FLOAT32)


def fed(
    runner: Runner, sequence: Cached, ids: Sequence[int], beside: tuple[Cached, Sequence[int]] | None = None
) -> np.ndarray:
    """Logits of the next tokens of a sequence, in one batch, perhaps behind those of another."""
    spans = [Span(*pair) for pair in (beside, (sequence, ids)) if pair is not None]
    for span in spans:
        span.sequence.reserve(len(span.token_ids))
    assert runner.run_body(spans)
    for span in spans:
        span.sequence.append(span.token_ids)
    first = sum(len(span.token_ids) for span in spans[:-1])
    return np.stack([logits.copy() for logits, _ in runner.logits_of(range(first, first + len(ids)))])


def mean_kl(exact: np.ndarray, found: np.ndarray) -> float:
    """Of the distributions that logits stand for, in nats."""
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (exact.astype(np.float64), found.astype(np.float64)))
    return float((np.exp(p) * (p - q)).sum(-1).mean())
