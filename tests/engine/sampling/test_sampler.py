"""Choosing a token: each filter against transformers' own, on all logits sorted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers.generation import logits_process

from edgellm.engine.sampling import NoTokenError, Sampler
from edgellm.engine.sampling.all_tokens import AllTokens
from edgellm.engine.sampling.groups import IN_NUMPY, Filter
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.reference import maxima
from edgellm.kernels.sampling_records import MOST_LIKELY
from edgellm.params import SamplingParams

LOGITS = np.log(np.array([0.02, 0.4, 0.03, 0.3, 0.2, 0.05], np.float32))
OPEN: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 1}


def seen(n: int = 4000, context=(), logits=LOGITS, **params: Any) -> Counter[int]:
    sampler = Sampler(SamplingParams(**(OPEN | params)))
    return Counter(sampler.choose(logits, context) for _ in range(n))


def expected_probabilities(logits: np.ndarray, context: list[int], p: SamplingParams) -> np.ndarray:
    """transformers' processors in the order that `SamplingParams` promises."""
    ids, scores = torch.tensor([context], dtype=torch.long), torch.tensor(logits[None], dtype=torch.float64)
    if p.repeat_penalty != 1:
        recent = ids[:, max(0, ids.shape[1] - p.repeat_last_n) :]
        scores = logits_process.RepetitionPenaltyLogitsProcessor(p.repeat_penalty)(recent, scores)
        scores = scores.float().double()  # a logit is a float32
    if p.top_k:
        scores = logits_process.TopKLogitsWarper(p.top_k)(ids, scores)
    if p.top_p < 1:
        scores = logits_process.TopPLogitsWarper(p.top_p)(ids, scores)
    if p.min_p:
        scores = logits_process.MinPLogitsWarper(p.min_p)(ids, scores)
    return logits_process.TemperatureLogitsWarper(p.temperature)(ids, scores).softmax(-1)[0].numpy()


def is_on_an_edge(logits: np.ndarray, context: list[int], p: SamplingParams) -> bool:
    """Whether rounding decides if a token is in or out: filters a little narrower or wider say something else."""
    less, more = 1 - 1e-6, 1 + 1e-6
    narrower = replace(p, top_p=p.top_p * less if p.top_p < 1 else 1, min_p=min(1, p.min_p * more))
    wider = replace(p, top_p=min(1, p.top_p * more), min_p=p.min_p * less)
    kept = [expected_probabilities(logits, context, params) > 0 for params in (narrower, wider)]
    return bool((kept[0] != kept[1]).any())


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert Sampler(SamplingParams(temperature=0)).choose(np.array([1, 3, 3, 2], np.float32), ()) == 1
    assert Sampler(SamplingParams(top_k=1)).choose(np.array([1, 3, 3, 2], np.float32), ()) == 1


class Draws:
    """In the place of random numbers: one that the test knows."""

    def __init__(self, number: float) -> None:
        self.number = number

    def roll(self) -> float:
        return self.number


@settings(max_examples=300, deadline=None)
@given(
    logits=arrays(np.float32, st.integers(1, 40), elements=st.floats(-8, 8, width=32), unique=True),
    context=st.lists(st.integers(0, 39), max_size=12),
    params=st.builds(
        SamplingParams,
        temperature=st.floats(0.1, 3),
        top_k=st.integers(0, 45),
        top_p=st.floats(0.05, 1),
        min_p=st.floats(0, 0.9),
        repeat_penalty=st.sampled_from([1.0, 0.7, 1.3]),
        repeat_last_n=st.integers(1, 12),
    ),
    number=st.floats(0, 1, exclude_max=True),
)
def test_filters_and_their_order(logits, context, params, number) -> None:
    """The draw falls where the cumulative probabilities say that it falls.

    They are added up from the most likely on where the first filter has made a list, and else in the order of tokens.
    """
    context = [token % len(logits) for token in context]
    assume(not is_on_an_edge(logits, context, params))
    probabilities = expected_probabilities(logits, context, params)
    sampler = Sampler(params)
    sampler._dice = Draws(number)
    chosen = sampler.choose(logits, context)
    assert probabilities[chosen] > 0
    assume(len(set(probabilities[probabilities > 0])) == (probabilities > 0).sum())  # penalties can make ties
    before = probabilities > probabilities[chosen] if params.top_k else np.arange(len(logits)) < chosen
    above = probabilities[before].sum()
    assert above - 1e-6 <= number <= above + probabilities[chosen] + 1e-6


def test_tokens_come_as_often_as_they_are_likely() -> None:
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
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.8}, {1, 3, 4}),  # of the three that are left, two have less than 0.8
        ({"top_p": 0.0}, {1}),
        ({"top_p": 0.69, "temperature": 50.0}, {1, 3}),  # temperature comes last
        ({"top_k": 10**9}, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_filters(params, tokens) -> None:
    assert set(seen(**params)) == tokens


def test_ties_for_the_last_place_go_to_the_smaller_id() -> None:
    assert set(seen(logits=np.zeros(6, np.float32), top_k=3)) == {0, 1, 2}
    assert set(seen(logits=np.zeros(6, np.float32), top_p=0.5)) == {0, 1, 2}


def test_penalty_moves_recent_tokens_down() -> None:
    def choose(context, **params) -> int:
        return Sampler(SamplingParams(temperature=0, repeat_penalty=2.0, **params)).choose(LOGITS, context)

    assert choose([1]) == 3
    assert choose([1, 3], repeat_last_n=1) == 1
    assert choose([1], repeat_last_n=0) == 1
    assert choose([]) == 1


def test_same_seed_same_tokens() -> None:
    def draw(seed) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler.choose(LOGITS, ()) for _ in range(50)]

    assert draw(7) == draw(7) != draw(8)
    assert draw(None) != draw(None)


def most_likely(logits: np.ndarray, k: int) -> np.ndarray:
    return AllTokens(logits, maxima(logits), IN_NUMPY, is_own=False).kept([Filter(MOST_LIKELY, k, 1.0)])[0]


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 3000), elements=st.integers(-60, 60)), st.integers(1, 100))
def test_most_likely_is_the_top_of_a_full_sort(logits, k) -> None:
    expected = np.argsort(-logits, kind="stable")[:k]
    assert most_likely(logits, k).tolist() == expected.tolist()


def test_most_likely_of_a_large_vocabulary() -> None:
    logits = np.random.default_rng(0).standard_normal(262_144).astype(np.float32)
    logits[-1] = logits[-2] = 9.0  # behind the last whole run
    for k in (1, 40, 1000, 100_000):
        expected = np.argsort(-logits, kind="stable")[:k]
        assert most_likely(logits, k).tolist() == expected.tolist()


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 3}, {"repeat_penalty": 1.5}, OPEN])
def test_known_maxima_change_nothing(params) -> None:
    """Whether the largest of every group come from the program that made the logits or are looked for here."""
    rng = np.random.default_rng(7)
    for n in (1, 63, 64, 65, 5000):
        for _ in range(20):
            logits = rng.standard_normal(n).astype(np.float32) * 4
            seed, context = int(rng.integers(1 << 30)), rng.integers(0, n, 5).tolist()
            alone, told = (Sampler(SamplingParams(**(params | {"seed": seed}))) for _ in range(2))
            assert told.choose(logits, context, maxima(logits)) == alone.choose(logits, context)


@pytest.mark.parametrize("extreme", [float("-inf"), 3e38, -3e38])
@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {}, {"temperature": 1e-6}, {"repeat_penalty": 5.0}, {"repeat_penalty": 0.5}, OPEN]
)
def test_the_largest_and_smallest_logits(extreme, params) -> None:
    """Also where a penalty makes more of them than float32 can hold."""
    logits = np.tile(LOGITS, 100)
    logits[400] = extreme
    choose = Sampler(SamplingParams(**params)).choose
    chosen = {choose(logits, [3, 400]) for _ in range(200)}
    assert chosen == {400} if extreme > 0 else 400 not in chosen


@pytest.mark.parametrize(
    "params", [OPEN, OPEN | {"top_k": 40}, OPEN | {"top_k": 5}, OPEN | {"top_p": 0.9}, OPEN | {"min_p": 0.1}, {}]
)
@pytest.mark.parametrize("n_numbers", [1, 10, 127])
def test_what_must_not_come_takes_no_chance_from_others(params, n_numbers: int) -> None:
    rng = np.random.default_rng(n_numbers)
    allowed = np.sort(rng.permutation(128)[:n_numbers])
    logits = np.full(128, -np.inf, np.float32)
    logits[allowed] = rng.standard_normal(n_numbers)
    a, b = (Sampler(SamplingParams(**(params | {"seed": 3}))) for _ in range(2))
    assert [a.choose(logits, ()) for _ in range(100)] == [allowed[b.choose(logits[allowed], ())] for _ in range(100)]


@pytest.mark.parametrize(("near", "p"), [(-5.95e-31, 0.5), (1e-12, 0.5), (-1e-9, 0.4), (1e-44, 0.5)])
def test_logits_that_differ_where_probabilities_do_not(near, p) -> None:
    """The larger logit is the likelier token, however near the other is, and whichever filters are on."""
    for logits in (np.array([near, 0], np.float32), np.array([0, near], np.float32)):
        for params in ({"top_p": p}, {"top_p": p, "top_k": 2}, {"top_p": p, "min_p": 0.1}):
            assert set(seen(20, logits=logits, **params)) == {int(logits.argmax())}


def test_filters_are_the_same_with_and_without_top_k() -> None:
    rng = np.random.default_rng(5)
    for n in (2, 70, 3000):
        logits = rng.standard_normal(n).astype(np.float32)
        logits[: n // 2] = logits[n // 2 : n // 2 * 2] * np.float32(1 + 2e-7)  # almost ties
        for params in ({"top_p": 0.9}, {"top_p": 0.3, "min_p": 0.2}, {"min_p": 0.5}, {"top_p": 0.999}):
            without, with_all = (Sampler(SamplingParams(**(OPEN | params | {"top_k": k}))) for k in (0, n))
            largest = np.maximum.reduceat(logits, np.arange(0, n, MAXIMA_GROUP))
            kept, of_all = (set(sampler.candidates(logits, (), largest).ids) for sampler in (without, with_all))
            assert kept == of_all


def test_the_smallest_temperatures_are_all_but_greedy() -> None:
    for temperature in (1e-6, 1e-100, 1e-310, 5e-324):
        assert set(seen(20, temperature=temperature)) == {1}


@given(arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([-np.inf, -3.0, 0.0, 1.0, 2.5])))
def test_the_likeliest_is_the_first_of_the_largest(logits: np.ndarray) -> None:
    """Alone, greedy choice looks at the maxima only; behind another step it looks at what that has left."""
    largest = np.maximum.reduceat(logits, np.arange(0, len(logits), MAXIMA_GROUP))
    alone, behind = (Sampler(SamplingParams(temperature=0, **params)) for params in ({}, {"repeat_penalty": 1.1}))
    for sampler in (alone, behind):
        if logits.max() == -np.inf:
            with pytest.raises(NoTokenError):
                sampler.choose(logits.copy(), [], largest.copy())
        else:
            assert sampler.choose(logits.copy(), [], largest.copy()) == logits.argmax()
            other = int(logits.argmax())
            if (np.delete(logits, other) > -np.inf).any():
                expected = np.where(np.arange(len(logits)) == other, -np.inf, logits).argmax()
                assert sampler.choose(logits.copy(), [], largest.copy(), forbidden=[other]) == expected
