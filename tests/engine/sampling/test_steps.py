"""Each step, alone and with others in any order, against its definition; and 100,000 draws against its chances."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.engine.sampling import Sampler
from edgellm.kernels.reference import maxima
from edgellm.params import SAMPLERS, SamplingParams

from . import twin

OFF: dict[str, Any] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
}  # fmt: skip
PIECES = [b"a", b" b", b"c\n", b"d", b": ", b"ef", b"<", b">", b"g*", b"h"]


def pieces(token_id: int) -> bytes:
    return PIECES[token_id % len(PIECES)]


def chances(logits: np.ndarray, params: SamplingParams, context=(), **kwargs: Any) -> np.ndarray:
    """What the steps leave to the draw: float64 [n_vocab]."""
    candidates = Sampler(params, pieces).candidates(logits, list(context), maxima(logits), **kwargs)
    ids = np.arange(len(logits)) if candidates.ids is None else candidates.ids
    assert len(set(ids.tolist())) == len(ids) > 0
    found = np.zeros(len(logits))
    found[ids] = candidates.probabilities()
    return found


def agree(logits: np.ndarray, params: SamplingParams, context=()) -> None:
    expected = twin.probabilities(logits, params, context, pieces)
    expected = np.pad(expected, (0, len(logits) - len(expected)))
    np.testing.assert_allclose(chances(logits, params, context), expected, rtol=2e-4, atol=1e-9)


# Each step as people set it.
ALONE: dict[str, list[dict[str, Any]]] = {
    "penalties": [
        {"repeat_penalty": 1.3}, {"repeat_penalty": 0.8, "repeat_last_n": 3}, {"presence_penalty": 0.7},
        {"frequency_penalty": 0.5, "repeat_last_n": -1}, {"presence_penalty": -1, "frequency_penalty": -0.2},
        {"repeat_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.3, "repeat_last_n": 0},
    ],
    "dry": [
        {"dry_multiplier": 0.8}, {"dry_multiplier": 0.5, "dry_allowed_length": 1, "dry_base": 1.0},
        {"dry_multiplier": 0.8, "dry_sequence_breakers": []}, {"dry_multiplier": 2, "dry_penalty_last_n": 12},
        {"dry_multiplier": 0.8, "dry_sequence_breakers": ["<>", "f<"], "dry_allowed_length": 1},
    ],
    "top_n_sigma": [{"top_n_sigma": 1.0}, {"top_n_sigma": 0.5}, {"top_n_sigma": 3}],
    "top_k": [{"top_k": 1}, {"top_k": 7}, {"top_k": 100_000}],
    "typ_p": [{"typical_p": 0.2}, {"typical_p": 0.9}, {"typical_p": 0.0}],
    "top_p": [{"top_p": 0.3}, {"top_p": 0.95}, {"top_p": 0.0}],
    "min_p": [{"min_p": 0.05}, {"min_p": 0.5}, {"min_p": 1.0}],
    "xtc": [{"xtc_probability": 1.0}, {"xtc_probability": 1.0, "xtc_threshold": 0.02},
            {"xtc_probability": 1.0, "xtc_threshold": 0.51}, {"xtc_probability": 1.0, "xtc_threshold": 0.0}],
    "temperature": [{"temperature": 0.5}, {"temperature": 2.0}, {"temperature": 0.0},
                    {"temperature": 1.0, "dynatemp_range": 0.5}, {"dynatemp_range": 3.0, "dynatemp_exponent": 2.0}],
    "mirostat": [{"mirostat": 2, "mirostat_tau": 1.0}, {"mirostat": 2, "mirostat_tau": 3.0}],
    "adaptive_p": [{"adaptive_target": 0.3}, {"adaptive_target": 0.0}, {"adaptive_target": 1.0}],
}  # fmt: skip
CASES = [(step, params) for step, cases in ALONE.items() for params in cases]


def test_every_step_is_tried() -> None:
    assert list(ALONE) == list(SAMPLERS)


@pytest.mark.parametrize(("step", "params"), CASES)
def test_a_step_alone(step: str, params: dict[str, Any]) -> None:
    p = SamplingParams(**(OFF | params), samplers=[step])
    assert p.steps == [step]
    rng = np.random.default_rng(1)
    for n, spread in itertools.product((1, 2, 63, 64, 65, 700, 5000), (0.3, 3, 12)):
        logits = (rng.standard_normal(n) * spread).astype(np.float32)
        context = rng.integers(0, min(n, 5), 60).tolist()
        agree(logits, p, context)


@settings(max_examples=300)
@given(st.permutations(list(SAMPLERS)[:-2]), st.integers(0, 2**32), st.data())
def test_any_steps_in_any_order(order, seed, data) -> None:
    """Continuous numbers, so that rounding never decides what stays."""
    last = data.draw(st.sampled_from([[], ["mirostat"], ["adaptive_p"]]))
    order = [*order[: data.draw(st.integers(1, len(order)))], *last]
    params = OFF.copy()
    for step in order:
        params |= data.draw(st.sampled_from(ALONE[step]))
    if params["temperature"] == 0:
        params["temperature"] = 0.7
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(data.draw(st.sampled_from([3, 64, 200, 1000]))) * 3).astype(np.float32)
    agree(logits, SamplingParams(**params, samplers=order), rng.integers(0, 3, 40).tolist())


def test_order_matters() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    p = OFF | {"top_p": 0.75, "temperature": 4.0}
    assert (chances(logits, SamplingParams(**p, samplers="top_p;temperature")) > 0).sum() == 2
    assert (chances(logits, SamplingParams(**p, samplers="temperature;top_p")) > 0).sum() == 3


def test_biases_and_what_they_forbid() -> None:
    rng = np.random.default_rng(2)
    logits = rng.standard_normal(300).astype(np.float32)
    for bias in ({5: 3.0, 299: -1.5}, {0: -np.inf}, {int(logits.argmax()): -np.inf, 7: 1}, {260: 1e300, 261: -1e300}):
        found = chances(logits, SamplingParams(**OFF, logit_bias=bias))
        biased = logits.astype(np.float64)
        for token_id, added in bias.items():
            biased[token_id] = np.clip(biased[token_id] + added, -3e38, 3e38) if added > -np.inf else -np.inf
        np.testing.assert_allclose(found, twin.softmax(biased), rtol=1e-5, atol=1e-12)
        greedy = Sampler(SamplingParams(temperature=0, logit_bias=bias)).choose(logits, (), maxima(logits))
        assert greedy == int(biased.argmax())


# --- draws ------------------------------------------------------------------------------------------------

N_DRAWS = 40_000
LOGITS = (np.random.default_rng(3).standard_normal(40) * 1.5).astype(np.float32)
CONTEXT = [3, 7, 1, 3, 7, 9, 3, 7, 1, 3]
LEAST_P = 1e-6  # of a chi-square test: a right sampler fails one in a million, and these draws never change


def is_likely(counts: np.ndarray, expected: np.ndarray) -> bool:
    """Whether draws may come from a distribution: Pearson's chi-square, rare tokens together."""
    assert not counts[expected == 0].any()
    order = np.argsort(expected)
    order = order[expected[order] > 0]
    groups, total = [], 0.0
    for token in order:
        if not groups or total >= 10 / N_DRAWS:
            groups.append([])
            total = 0.0
        groups[-1].append(token)
        total += expected[token]
    observed = np.array([counts[group].sum() for group in groups])
    wanted = np.array([expected[group].sum() for group in groups]) * counts.sum()
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((len(groups) - 1) / 2, dtype=torch.float64)
    return len(groups) < 2 or float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2))) > LEAST_P


@pytest.mark.parametrize(("step", "params"), [(step, cases[0]) for step, cases in ALONE.items()])
def test_draws_have_the_chances_of_the_definition(step: str, params: dict[str, Any]) -> None:
    p = SamplingParams(**(OFF | params), samplers=[step], seed=11)
    sampler = Sampler(p, pieces)
    candidates = sampler.candidates(LOGITS, CONTEXT, maxima(LOGITS))
    draws = [candidates.draw(sampler._dice).token_id for _ in range(N_DRAWS)]
    counts = np.bincount(draws, minlength=len(LOGITS))
    expected = twin.probabilities(LOGITS, p, CONTEXT, pieces)
    assert is_likely(counts, np.pad(expected, (0, len(LOGITS) - len(expected))))


def test_a_wrong_distribution_is_found() -> None:
    rng = np.random.default_rng(4)
    expected = twin.softmax(LOGITS.astype(np.float64))
    assert is_likely(rng.multinomial(N_DRAWS, expected), expected)
    wrong = expected.copy()
    wrong[np.argsort(expected)[-3:-1]] += [0.01, -0.01]
    assert not is_likely(rng.multinomial(N_DRAWS, wrong), expected)


def test_draws_from_a_whole_large_vocabulary() -> None:
    """Where the draw goes by groups."""
    logits = (np.random.default_rng(5).standard_normal(10_007) * 2).astype(np.float32)
    sampler = Sampler(SamplingParams(**(OFF | {"temperature": 0.7}), seed=1))
    candidates = sampler.candidates(logits, (), maxima(logits))
    assert candidates.ids is None
    draws = [candidates.draw(sampler._dice).token_id for _ in range(20_000)]
    assert is_likely(np.bincount(draws, minlength=len(logits)), twin.softmax(logits / 0.7))


def test_xtc_is_thrown_as_often_as_its_probability() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingParams(**OFF, xtc_probability=0.3, xtc_threshold=0.1, seed=2))
    counts = np.bincount([sampler.choose(logits, ()) for _ in range(N_DRAWS // 4)], minlength=4)
    without, with_it = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0, 0, 0.75, 0.25])
    assert is_likely(counts, 0.7 * without + 0.3 * with_it)


def test_mirostat_follows_its_rule_and_meets_its_aim() -> None:
    rng = np.random.default_rng(6)
    p = SamplingParams(mirostat=2, mirostat_tau=2.0, mirostat_eta=0.2, temperature=1.0, seed=3)
    sampler, mu, surprises = Sampler(p), 4.0, []
    for _ in range(1500):
        logits = (rng.standard_normal(300) * 2).astype(np.float32)
        chosen = sampler.choose(logits, (), maxima(logits))
        ids, kept = twin.mirostat(np.arange(300), logits.astype(np.float64), p, [], None, mu)
        surprise = -np.log2(twin.softmax(kept)[ids.tolist().index(chosen)])
        mu -= 0.2 * (surprise - 2.0)
        assert sampler._steps[-1].state == pytest.approx(mu, rel=1e-4)
        surprises.append(surprise)
    assert np.mean(surprises) == pytest.approx(2.0, abs=0.1)


def test_adaptive_p_follows_its_rule_and_meets_its_aim() -> None:
    rng = np.random.default_rng(7)
    p = SamplingParams(**OFF, adaptive_target=0.3, adaptive_decay=0.9, seed=4)
    sampler, total, count, drawn = Sampler(p), 3.0, 10.0, []
    for _ in range(1500):
        logits = np.log(rng.permutation([0.45, 0.3, 0.15, 0.07, 0.03])).astype(np.float32)
        _, changed = twin.adaptive_p(np.arange(5), logits.astype(np.float64), p, [], None, total / count)
        chosen = sampler.choose(logits, (), maxima(logits))
        assert twin.softmax(changed)[chosen] > 1e-9
        probability = twin.softmax(logits.astype(np.float64))[chosen]
        total, count = probability + 0.9 * total, 1 + 0.9 * count
        assert sampler._steps[-1].state == pytest.approx((total, count), rel=1e-4)
        drawn.append(probability)
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.05)


def test_dry_on_a_long_text_that_repeats_itself() -> None:
    context = [5] * 3000
    params = SamplingParams(**OFF, dry_multiplier=0.8, dry_sequence_breakers=[])
    found = chances(np.zeros(10, np.float32), params, context)
    assert found[5] == 0 and found[[0, 1, 9]] == pytest.approx(1 / 9)  # the penalty is beyond float32, and bounded
