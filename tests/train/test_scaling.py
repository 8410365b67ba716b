"""The scaling laws: numbers of the papers, and best sizes that are best."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.train.scaling import HOFFMANN, KAPLAN, PETAFLOP_DAY, REPEAT_WORTH, Spent, worth_of

BUDGETS = st.floats(12, 26).map(lambda exponent: 10.0**exponent)


def test_chinchilla() -> None:
    """70 billion weights and 1.4 trillion tokens, as in the paper's own formula: 1.69 + 0.083 + 0.163."""
    assert HOFFMANN.loss(Spent(70e9, 1.4e12)) == pytest.approx(1.936, abs=0.002)
    assert Spent(70e9, 1.4e12).flops == pytest.approx(5.88e23)


def test_their_exponents() -> None:
    """Table 2 of Hoffmann et al.: approach 3 has N ~ C^0.46 (0.45 to 0.455) and D ~ C^0.54 (0.54 to 0.545)."""
    low, high = HOFFMANN.best(1e20), HOFFMANN.best(1e22)
    assert math.log(high.n_parameters / low.n_parameters, 100) == pytest.approx(0.4516, abs=1e-3)
    assert math.log(high.n_tokens / low.n_tokens, 100) == pytest.approx(0.5484, abs=1e-3)


@given(BUDGETS, st.floats(0.3, 3))
def test_the_best_size_is_the_best(flops: float, other: float) -> None:
    best = HOFFMANN.best(flops)
    assert best.flops == pytest.approx(flops)
    moved = Spent(best.n_parameters * other, best.n_tokens / other)
    assert HOFFMANN.loss(best) <= HOFFMANN.loss(moved) * (1 + 1e-12)


@given(BUDGETS)
def test_sizes_and_tokens_belong_together_both_ways(flops: float) -> None:
    best = HOFFMANN.best(flops)
    assert HOFFMANN.tokens_for(best.n_parameters) == pytest.approx(best.n_tokens)
    assert HOFFMANN.parameters_for(best.n_tokens) == pytest.approx(best.n_parameters)


def test_kaplan() -> None:
    """With endless data it is their equation of size alone, with endless size that of data; at a petaflop-day 1.3e9."""
    assert KAPLAN.loss(Spent(1e9, 1e30)) == pytest.approx((6.4e13 / 1e9) ** 0.076, rel=1e-6)
    assert KAPLAN.loss(Spent(1e30, 1e9)) == pytest.approx((1.8e13 / 1e9) ** 0.103, rel=1e-2)
    best = KAPLAN.best(PETAFLOP_DAY)
    assert best.n_parameters == pytest.approx(1.3e9) and best.flops == pytest.approx(PETAFLOP_DAY)
    assert KAPLAN.best(10 * PETAFLOP_DAY).n_parameters / 1.3e9 == pytest.approx(10**0.73)


@given(st.floats(1, 1e12), st.floats(0.01, 1e3))
def test_repeated_text_is_worth_less(n_unique: float, epochs: float) -> None:
    worth = worth_of(epochs * n_unique, n_unique)
    assert worth <= epochs * n_unique * (1 + 1e-12)
    assert worth <= n_unique * (1 + REPEAT_WORTH) or epochs <= 1
    assert epochs > 1 or worth == epochs * n_unique


def test_four_epochs_are_nearly_as_good_as_new_text() -> None:
    assert worth_of(4e6, 1e6) == pytest.approx(3.727e6, rel=1e-3)
    assert worth_of(40e6, 1e6) < 16e6
