"""A whole vocabulary, changed in place: what is known of it stays true, and the logits are given back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.engine.sampling import Candidates, Sampler
from edgellm.engine.sampling.all_tokens import AllTokens
from edgellm.engine.sampling.groups import ALL_BITS, IN_NUMPY, Filter
from edgellm.engine.sampling.step import Step
from edgellm.errors import UsageError
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import MOST_LIKELY
from edgellm.params import SamplingParams

ALL_OPEN: dict[str, Any] = {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 1}
STEPS: list[dict[str, Any]] = [
    {}, ALL_OPEN, {"temperature": 0}, {**ALL_OPEN, "top_p": 0.9}, {**ALL_OPEN, "top_k": 5000}, {"mirostat": 2},
    {**ALL_OPEN, "typical_p": 0.9}, {**ALL_OPEN, "top_n_sigma": 1.0}, {**ALL_OPEN, "dynatemp_range": 0.5},
    {**ALL_OPEN, "xtc_probability": 1.0, "xtc_threshold": 0.01}, {**ALL_OPEN, "adaptive_target": 0.4},
    {"repeat_penalty": 1.5, "repeat_last_n": -1}, {"logit_bias": {3: -np.inf, 70: 4.0}}, {"temperature": 1e-300},
    {**ALL_OPEN, "samplers": "temperature;penalties", "temperature": 0.5, "presence_penalty": 2.0},
]  # fmt: skip


class Mask(Step):
    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    def apply(self, candidates: Candidates) -> None:
        candidates.allow(self._words)


def some_words(rng: np.random.Generator, n: int) -> np.ndarray:
    words = rng.integers(0, 2**64, -(-n // MAXIMA_GROUP), np.uint64)
    words[rng.random(len(words)) < 0.3] = 0
    words[rng.random(len(words)) < 0.3] = ALL_BITS
    return words


def bits_of(words: np.ndarray, n: int) -> np.ndarray:
    return np.array([bool(int(words[i // MAXIMA_GROUP]) >> i % MAXIMA_GROUP & 1) for i in range(n)])


def maxima_of(logits: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(logits, np.arange(0, len(logits), MAXIMA_GROUP))


@settings(max_examples=150)
@given(st.sampled_from([1, 63, 64, 65, 300, 640]), st.integers(0, 2**32), st.lists(st.booleans(), max_size=6))
def test_whatever_is_changed(n: int, seed: int, is_put: list[bool]) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(n).astype(np.float32)
    expected, before, maxima = logits.copy(), logits.copy(), maxima_of(logits)
    known = maxima.copy()
    found = AllTokens(logits, maxima, IN_NUMPY, is_own=False, is_lent=True)
    allowed = np.ones(n, bool)
    for puts in is_put:
        if puts:
            positions = np.flatnonzero(rng.random(n) < 0.1)
            lost = rng.standard_normal(len(positions)) * 3
            lost[rng.random(len(lost)) < 0.3] = np.inf
            found.change(positions, lost, 1.0, 1.0)
            expected[positions] = expected[positions] - lost
        else:
            words = some_words(rng, n)
            allowed &= bits_of(words, n)
            found.allow(words)
        now = np.where(allowed, expected, np.float32(-np.inf))
        np.testing.assert_array_equal(found.logits(), now)
        np.testing.assert_array_equal(found.maxima, maxima_of(now))
        order = [i for i in np.argsort(-now, kind="stable").tolist() if now[i] > -np.inf]
        for k in (1, 3, 70, n):
            kept, theirs = found.kept([Filter(MOST_LIKELY, k, 1.0)])
            assert kept.tolist() == order[:k] and theirs.tolist() == now[order[:k]].tolist()
        assert found.at_least(0.5)[0].tolist() == np.flatnonzero(now >= 0.5).tolist()
        if order:
            assert found.likeliest() == order[0] and found.largest == now[order[0]]
            weights = np.exp((now.astype(np.float64) - found.largest) / 0.7)
            assert found.weights(0.7).total == pytest.approx(weights.sum(), rel=1e-5)
            assert found.weights(0.7).n == len(order)
    found.give_back()
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(maxima, known)


@pytest.mark.parametrize("params", STEPS, ids=str)
def test_a_mask_is_as_if_the_others_had_no_logits(params: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    for n in (40, 64, 700, 5000, 20_000):  # some are so few that a list is made of them
        logits, words = (rng.standard_normal(n) * 3).astype(np.float32), some_words(rng, n)
        words[0] |= np.uint64(1 << 3 | 1 << 7)
        without = np.where(bits_of(words, n), logits, np.float32(-np.inf))
        context = rng.integers(0, n, 50).tolist()
        masked = Sampler(SamplingParams(**params, seed=2), rules=[Mask(words)])
        plain = Sampler(SamplingParams(**params, seed=2))
        one, other = masked.candidates(logits, context, maxima_of(logits)), plain.candidates(without, context)
        ids = [np.arange(n) if each.ids is None else each.ids for each in (one, other)]
        chances = np.zeros((2, n))
        for row, of, each in zip(chances, ids, (one, other), strict=True):
            row[of] = each.probabilities()
        np.testing.assert_allclose(chances[0], chances[1], rtol=1e-5, atol=1e-12)
        drawn = [masked.choose(logits, context, maxima_of(logits)) for _ in range(20)]
        assert drawn == [plain.choose(without, context) for _ in range(20)]


@pytest.mark.parametrize("is_writeable", [True, False])
def test_logits_are_given_back_also_when_a_step_fails(is_writeable: bool) -> None:
    logits = np.random.default_rng(2).standard_normal(200).astype(np.float32)
    before = logits.copy()
    logits.flags.writeable = is_writeable

    def fails(ids: np.ndarray, logits: np.ndarray, context: np.ndarray) -> None:
        raise UsageError("no more")

    params = SamplingParams(logit_bias={3: 9.0, 4: -np.inf}, repeat_penalty=1.4, samplers=["penalties", fails])
    with pytest.raises(UsageError, match="no more"):
        Sampler(params).choose(logits, [3, 5, 100])
    np.testing.assert_array_equal(logits, before)
    plain = SamplingParams(logit_bias={3: 9.0, 4: -np.inf}, repeat_penalty=1.4, temperature=0)
    assert Sampler(plain).choose(logits, [3, 5, 100]) == 3
    np.testing.assert_array_equal(logits, before)
