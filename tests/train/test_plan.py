"""Plans: what is given stays, the rest follows, and what to doubt is said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.train.plan import Speed, make_plan, shape_of_size
from edgellm.train.scaling import HOFFMANN, Spent

SPEED = Speed(1e11, 2.5e11, 0.4)


def test_hours_alone_are_spent_best() -> None:
    plan = make_plan(SPEED, hours=2)
    assert plan.asked.flops == pytest.approx(2 * 3600 * 1e11) and plan.asked.hours == pytest.approx(2)
    best = HOFFMANN.best(plan.asked.flops)
    assert plan.asked.n_parameters == pytest.approx(best.n_parameters)
    assert plan.asked.n_tokens == pytest.approx(best.n_tokens)
    assert plan.best is None


def test_a_size_alone_gets_the_tokens_that_it_is_best_for() -> None:
    plan = make_plan(SPEED, n_parameters=3e6)
    assert plan.asked.n_tokens == HOFFMANN.tokens_for(3e6)
    assert plan.asked.hours == pytest.approx(6 * 3e6 * plan.asked.n_tokens / 1e11 / 3600)
    assert plan.best is None


def test_tokens_alone_get_the_size_that_is_best_for_them() -> None:
    plan = make_plan(SPEED, n_tokens=1e8)
    assert plan.asked.n_parameters == HOFFMANN.parameters_for(1e8) and plan.best is None


def test_two_are_kept_and_something_better_is_shown() -> None:
    plan = make_plan(SPEED, n_parameters=3e6, n_tokens=3e6)
    assert (plan.asked.n_parameters, plan.asked.n_tokens) == (3e6, 3e6)
    assert plan.best is not None and plan.best.flops == pytest.approx(plan.asked.flops)
    law = HOFFMANN.name
    assert plan.best.losses[law] < plan.asked.losses[law] == HOFFMANN.loss(Spent(3e6, 3e6))
    by_time = make_plan(SPEED, n_parameters=3e6, hours=1)
    assert by_time.asked.n_tokens == pytest.approx(3600 * 1e11 / (6 * 3e6))
    assert make_plan(SPEED, n_tokens=2e7, hours=1).asked.n_parameters == pytest.approx(3600 * 1e11 / (6 * 2e7))


def test_three_are_compared() -> None:
    plan = make_plan(SPEED, n_parameters=1e8, n_tokens=1e9, hours=1)
    assert any(note == "this takes 1.67e+03 hours, more than the 1 that there are" for note in plan.notes)
    fits = make_plan(SPEED, n_parameters=1e6, n_tokens=1e6, hours=1)
    assert not any("this takes" in note for note in fits.notes)


def test_a_text_is_counted_in_epochs() -> None:
    plan = make_plan(SPEED, n_tokens=1e7, n_unique=1e6)
    assert plan.epochs == 10 and plan.asked.worth < 1e7
    assert any("would be read 10.0 times; up to 4 times are nearly as good" in note for note in plan.notes)
    new = make_plan(SPEED, n_tokens=1e7)
    assert new.epochs is None and new.asked.losses[HOFFMANN.name] < plan.asked.losses[HOFFMANN.name]
    alone = make_plan(SPEED, n_unique=1e6)
    assert alone.epochs == 4 and not any("would be read" in note for note in alone.notes)


def test_where_the_laws_hold_is_said() -> None:
    assert any("both laws were fitted" in note for note in make_plan(SPEED, n_parameters=1e6).notes)
    assert not make_plan(SPEED, n_parameters=1e9, n_vocab=32_000).notes


def test_it_can_be_json() -> None:
    found = json.loads(json.dumps(make_plan(SPEED, n_parameters=3e6, n_tokens=3e6, n_unique=1e6).as_dict()))
    assert found["asked"]["n_parameters"] == 3e6 and found["epochs"] == 3 and found["speed"]["share"] == 0.4
    assert found["formulas"][HOFFMANN.name] == "L = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28"


@given(st.floats(5.5, 11).map(lambda exponent: 10.0**exponent), st.sampled_from([257, 1024, 4096, 32_000]))
@settings(max_examples=40)
def test_a_shape_has_about_the_size(n_parameters: float, n_vocab: int) -> None:
    if n_parameters < 250 * n_vocab:
        return
    shape = shape_of_size(n_parameters, n_vocab)
    assert 0.8 < shape.n_parameters(n_vocab) / n_parameters < 1.25
    assert 1 / 4 < shape.n_embd / shape.n_layers / 64 < 16
    assert shape.n_embd % (2 * shape.n_heads) == 0


def test_a_size_below_its_vocabulary_is_said() -> None:
    plan = make_plan(SPEED, n_parameters=1e5, n_vocab=32_000)
    assert any("a smaller vocabulary (--vocab) allows for smaller models" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing is known of the training; give one or two of --params, --tokens and --hours"),
        ({"n_parameters": 1e15}, "params is 1000000000000000.0; expected a number from 1 to 1000000000000"),
        ({"hours": 1e-9}, "hours is 1e-09; expected a number from 0.001 to 1000000"),
        ({"n_tokens": float("nan")}, "tokens is nan; expected a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be(given: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(SPEED, **given)  # type: ignore[arg-type]
    assert str(caught.value) == message
