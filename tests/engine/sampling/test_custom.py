"""A Python function as a step: what it is called with, what it may give, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgellm.engine.sampling import Sampler
from edgellm.errors import UsageError
from edgellm.params import SamplingParams

LOGITS = np.log(np.array([0.02, 0.4, 0.03, 0.3, 0.2, 0.05], np.float32))


def chosen(*samplers, logits=LOGITS, context=(4, 5), **params) -> set[int]:
    sampler = Sampler(SamplingParams(samplers=samplers, seed=1, **params))
    return {sampler.choose(logits, list(context)) for _ in range(300)}


def test_it_is_called_in_its_place_with_what_is_left() -> None:
    seen = []

    def step(ids, logits, context) -> None:
        seen.append((ids.tolist(), logits.copy(), context.tolist()))
        logits[ids == 1] = -np.inf

    assert chosen("top_k", step, "temperature", top_k=3, temperature=0.5) == {3, 4}
    ids, logits, context = seen[0]
    assert (ids, context) == ([1, 3, 4], [4, 5]) and len(seen) == 300
    np.testing.assert_array_equal(logits, LOGITS[[1, 3, 4]])
    seen.clear()
    chosen("temperature", step, temperature=0.5)
    np.testing.assert_allclose(seen[0][1], LOGITS / 0.5)  # what comes before it has been done
    assert seen[0][0] == [0, 1, 2, 3, 4, 5]


def test_what_it_may_give() -> None:
    assert chosen(lambda ids, logits, context: None) == {0, 1, 2, 3, 4, 5}
    assert chosen(lambda ids, logits, context: np.where(ids == 2, 0, -np.inf)) == {2}
    assert chosen(lambda ids, logits, context: [-np.inf, -np.inf, 0, 1, -np.inf, -np.inf]) == {2, 3}
    assert chosen(lambda ids, logits, context: (ids[[5, 0]], logits[[5, 0]])) == {0, 5}
    assert chosen(lambda ids, logits, context: ([3], [0])) == {3}
    assert chosen(lambda ids, logits, context: logits * 1e30, temperature=1) == {1}


def test_the_models_own_logits_stay() -> None:
    before = LOGITS.copy()

    def step(ids, logits, context) -> None:
        logits[:] = 0

    chosen(step)
    np.testing.assert_array_equal(LOGITS, before)


def test_ids_and_context_are_not_to_be_changed() -> None:
    def first(ids, logits, context) -> None:
        ids[0] = 5

    def second(ids, logits, context) -> None:
        context[0] = 5

    for step in (first, second):
        with pytest.raises(ValueError, match="read-only"):
            chosen(step)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda ids: np.full(len(ids), np.nan), "gave a logit that is NaN or infinity; expected numbers"),
        (lambda ids: np.full(len(ids), np.inf), "gave a logit that is NaN or infinity"),
        (lambda ids: np.full(len(ids), -np.inf), "left no token; expected at least one"),
        (lambda ids: ([], []), "left no token; expected at least one"),
        (lambda ids: [1.0, 2.0], "gave logits of shape (2,), float64; expected a number for each of the 6 tokens"),
        (lambda ids: "no", "gave logits of shape ()"),
        (lambda ids: 5, "gave logits of shape ()"),
        (lambda ids: ["a"] * len(ids), "gave logits of shape (6,), <U1; expected a number"),
        (lambda ids: [[1], [2, 3]], "gave [[1], [2, 3]]; expected None, logits, or ids and logits"),
        (lambda ids: ([7], [1.0]), "gave ids that were no candidates"),
        (lambda ids: ([-1], [1.0]), "gave ids that were no candidates"),
        (lambda ids: ([1.0], [1.0]), "gave ids that were no candidates"),
        (lambda ids: ([1, 1], [1.0, 2.0]), "gave an id twice"),
        (lambda ids: np.ones(len(ids), complex), "gave complex numbers"),
    ],
)
def test_what_it_may_not_give(given, words: str) -> None:
    def my_step(ids, logits, context):
        return given(ids)

    with pytest.raises(UsageError, match=re.escape(f"samplers has a step, my_step, that {words}")) as error:
        chosen(my_step)
    assert error.value.parameter == "samplers"


def test_it_runs_behind_a_temperature_of_zero_too() -> None:
    calls = []
    assert chosen("top_k", "temperature", lambda *given: calls.append(given[0].tolist()), temperature=0) == {1}
    assert calls == [[1]] * 300


def test_an_object_with_a_call() -> None:
    class Only:
        def __init__(self, token_id: int) -> None:
            self.token_id = token_id

        def __call__(self, ids, logits, context):
            return ids[ids == self.token_id], np.zeros(1)

    assert chosen(Only(4)) == {4}
