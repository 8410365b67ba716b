"""Choosing a token: each filter against its definition, on all logits sorted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgellm.engine.sampler import Sampler, _most_likely
from edgellm.errors import UsageError
from edgellm.params import SamplingParams

LOGITS = np.log(np.array([0.02, 0.4, 0.03, 0.3, 0.2, 0.05], np.float32))
OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 1}


def seen(n: int = 4000, context=(), **params) -> Counter:
    sampler = Sampler(SamplingParams(**(OPEN | params)))
    return Counter(sampler.choose(LOGITS, context) for _ in range(n))


def test_greedy_takes_the_first_of_the_largest():
    sampler = Sampler(SamplingParams(temperature=0))
    assert sampler.choose(np.array([1, 3, 3, 2], np.float32), ()) == 1


def test_without_filters_tokens_come_as_often_as_they_are_likely():
    counts = seen(20000)
    for token, logit in enumerate(LOGITS):
        assert counts[token] / 20000 == pytest.approx(np.exp(logit), abs=0.015)


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_p": 0.69}, {1, 3}),
        ({"top_p": 0.75}, {1, 3, 4}),
        ({"min_p": 0.4}, {1, 3, 4}),
        ({"min_p": 0.6}, {1, 3}),
        ({"top_k": 3, "top_p": 0.8}, {1, 3, 4}),  # of the three that are left, two have less than 0.8
        ({"top_p": 0.0}, {1}),
    ],
)
def test_filters(params, tokens):
    assert set(seen(**params)) == tokens


def test_temperature_sharpens():
    hot, cold = seen(temperature=2.0), seen(temperature=0.3)
    assert cold[1] > 0.6 * 4000 > hot[1]


def test_penalty_moves_recent_tokens_down():
    assert Sampler(SamplingParams(temperature=0, repeat_penalty=2.0)).choose(LOGITS, [1]) == 3
    assert Sampler(SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=1)).choose(LOGITS, [1, 3]) == 1


def test_same_seed_same_tokens():
    def draw(seed):
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler.choose(LOGITS, ()) for _ in range(50)]

    assert draw(7) == draw(7) != draw(8)


@given(arrays(np.float32, st.integers(1, 3000), elements=st.floats(-50, 50, width=16)), st.integers(1, 100))
def test_most_likely_is_the_top_of_a_full_sort(logits, k):
    chosen = _most_likely(logits, k)
    expected = np.argsort(-logits, kind="stable")[:k]
    assert sorted(chosen.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_no_numbers_still_give_a_token(bad, temperature):
    logits = LOGITS.copy()
    logits[2] = bad
    assert 0 <= Sampler(SamplingParams(temperature=temperature, seed=1)).choose(logits, ()) < len(logits)
    assert 0 <= Sampler(SamplingParams(temperature=temperature)).choose(np.full(9, bad, np.float32), ()) < 9


@pytest.mark.parametrize(
    "params", [{"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}, {"repeat_penalty": 0.0},
               {"temperature": float("nan")}, {"max_tokens": -1}, {"seed": -5}],
)  # fmt: skip
def test_parameters_that_cannot_work(params):
    with pytest.raises(UsageError, match=next(iter(params))):
        SamplingParams(**params)
