"""What holds for every choice, whatever the parameters and their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgellm.engine.sampling import Sampler
from edgellm.engine.sampling.logprobs import logprobs_of
from edgellm.errors import UsageError
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.params import SAMPLERS, SamplingParams

logits_of_all_kinds = arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.one_of(
        st.floats(-20, 20, width=32),
        st.sampled_from([-np.inf, 0.0, 3e38, -3e38, 1e-40]),
        st.floats(-(2.0**127), 2.0**127, width=32),
    ),
)
biases = st.one_of(st.floats(-1e300, 1e300), st.sampled_from([-np.inf, 0.0]))
settings_of_all_kinds = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.one_of(st.floats(0, 5), st.sampled_from([0.0, 1e-310, 1e300])),
        "top_k": st.integers(0, 250),
        "top_p": st.floats(0, 1),
        "min_p": st.floats(0, 1),
        "repeat_penalty": st.sampled_from([1e-30, 0.5, 1.0, 1.3, 1e30]),
        "repeat_last_n": st.integers(-1, 30),
        "presence_penalty": st.floats(-1e300, 1e300),
        "frequency_penalty": st.floats(-1e300, 1e300),
        "dry_multiplier": st.floats(0, 1e300),
        "dry_base": st.sampled_from([1.0, 1.0000001, 1.75, 1e300]),
        "dry_allowed_length": st.integers(1, 4),
        "dry_penalty_last_n": st.integers(-1, 30),
        "top_n_sigma": st.one_of(st.just(-1), st.floats(0, 1e300)),
        "typical_p": st.floats(0, 1),
        "xtc_probability": st.floats(0, 1),
        "xtc_threshold": st.floats(0, 1),
        "dynatemp_range": st.floats(0, 3),
        "dynatemp_exponent": st.floats(0, 1e300),
        "mirostat": st.sampled_from([0, 2]),
        "mirostat_tau": st.floats(1e-300, 1e300),
        "mirostat_eta": st.floats(1e-300, 1e300),
        "adaptive_target": st.one_of(st.just(-1), st.floats(0, 1)),
        "adaptive_decay": st.floats(0, 0.99),
        "logit_bias": st.dictionaries(st.integers(0, 220), biases, max_size=5),
        "samplers": st.lists(st.sampled_from(list(SAMPLERS)), unique=True),
    },
)


def maxima(logits: np.ndarray) -> np.ndarray:
    """Where a logit is minus infinity too."""
    return np.maximum.reduceat(logits, np.arange(0, len(logits), MAXIMA_GROUP))


@settings(max_examples=600)
@example(np.array([-np.inf], np.float32), {"temperature": 0.0, "typical_p": 0.0}, [], 0)
@given(logits_of_all_kinds, settings_of_all_kinds, st.lists(st.integers(0, 199), max_size=40), st.integers(0, 9))
def test_a_token_that_may_come_is_chosen_and_the_seed_decides_which(logits, given_settings, context, seed) -> None:
    try:
        params = SamplingParams(**given_settings, seed=seed)
    except UsageError:
        assume(False)  # a contradiction
    biases = params.logit_bias or {}
    allowed = [i for i in np.flatnonzero(logits > -np.inf).tolist() if biases.get(i, 0) > -np.inf]
    context = [i % len(logits) for i in context]
    before = logits.copy()
    samplers = [Sampler(params, lambda token_id: b"ab\n:"[token_id % 4 :]) for _ in range(3)]
    if not allowed:
        for sampler in samplers:
            with pytest.raises(UsageError, match="no token may come next"):
                sampler.choose(logits, context, maxima(logits))
        return
    # With known maxima or without, and what others were asked in between, nothing is different.
    first = [samplers[0].choose(logits, [*context, *[0] * n], maxima(logits)) for n in range(3)]
    assert first == [samplers[1].choose(logits, [*context, *[0] * n], None) for n in range(3)]
    assert set(first) <= set(allowed)
    np.testing.assert_array_equal(logits, before)
    forbidden = set(allowed) - {allowed[seed % len(allowed)]}
    assert samplers[2].choose(logits, context, maxima(logits), forbidden) not in forbidden


@settings(max_examples=200)
@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(-30, 30, width=32)), st.integers(0, 12), st.data())
def test_logprobs_are_the_models_own(logits, n_top, data) -> None:
    token_id = data.draw(st.integers(0, len(logits) - 1))
    found = logprobs_of(token_id, logits, maxima(logits), n_top)
    exact = logits.astype(np.float64)
    exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
    order = np.argsort(-logits, kind="stable")[:n_top]
    assert found.token_id == token_id and found.logprob == pytest.approx(exact[token_id], abs=1e-4)
    assert [i for i, _ in found.top] == order.tolist()
    assert [logprob for _, logprob in found.top] == pytest.approx(exact[order].tolist(), abs=1e-4)


def test_a_text_that_is_cut_back_is_seen_as_it_is() -> None:
    """Also where it then goes on with other tokens."""
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {"repeat_penalty": 1.5, "repeat_last_n": -1, "dry_multiplier": 1.0, "temperature": 0}
    followed = Sampler(SamplingParams(**params), lambda token_id: b": "[token_id % 3 :])
    context: list[int] = []
    for _ in range(400):
        logits = rng.standard_normal(12).astype(np.float32)
        fresh = Sampler(SamplingParams(**params), lambda token_id: b": "[token_id % 3 :])
        assert followed.choose(logits, context) == fresh.choose(logits, context)
        if rng.random() < 0.2:
            del context[int(rng.integers(0, len(context) + 1)) :]
            followed.choose(logits, context)
        context.append(int(rng.integers(0, 4)))


def test_a_step_can_be_given_back_what_it_knew() -> None:
    rng = np.random.default_rng(1)
    for setting in ({"mirostat": 2}, {"adaptive_target": 0.4}):
        sampler = Sampler(SamplingParams(**setting))
        state = sampler.state
        before = sampler.candidates(logits := rng.standard_normal(50).astype(np.float32), ()).probabilities()
        for _ in range(5):
            sampler.choose(logits, ())
        assert sampler.state != state
        sampler.state = state
        np.testing.assert_array_equal(sampler.candidates(logits, ()).probabilities(), before)
