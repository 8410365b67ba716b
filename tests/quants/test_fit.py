"""Choosing scales: as exact as the grid allows, never worse than plain rounding, and true to the importance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgellm.errors import UsageError
from edgellm.quants import FORMATS
from edgellm.quants.fit import fit
from edgellm.quants.grids import Scales

FITTED = [kind for kind in FORMATS.values() if kind.grid is not None]
SINGLE = [kind for kind in FITTED if kind.block_size == 32]


def squared_error(kind, x, importance=None, counted_by=None):
    found = kind.dequantize(kind.quantize(x, importance)).astype(np.float64)
    return (np.square(found - x) * (1 if counted_by is None else counted_by)).sum()


@pytest.mark.parametrize("kind", SINGLE, ids=repr)
def test_weights_on_a_grid_are_kept(kind):
    rng = np.random.default_rng(0)
    levels = np.array(kind.grid.levels) if isinstance(kind.grid, Scales) else np.arange(kind.grid.q_max + 1)
    x = 0.375 * rng.choice(levels, (50, 32)) - (0 if isinstance(kind.grid, Scales) else 2.5)
    x[:, 0], x[:, 1] = x.min(), x.max()  # every block reaches both ends
    np.testing.assert_array_equal(kind.dequantize(kind.quantize(x.astype(np.float32))), x)


@pytest.mark.parametrize("name", ["Q3_K", "Q6_K"])
def test_what_was_quantized_stays_what_it_is(name):
    kind = FORMATS[name]
    x = np.random.default_rng(1).standard_normal((16, 1024), np.float32)
    once = kind.dequantize(kind.quantize(x))
    assert squared_error(kind, once) < 0.02 * squared_error(kind, x)


finite = st.floats(-1, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(x=hnp.arrays(np.float32, (1, 32), elements=finite))
@pytest.mark.parametrize("kind", SINGLE, ids=repr)
def test_never_worse_than_plain_rounding(kind, x):
    grid = kind.grid
    top = np.abs(x).max()
    if isinstance(grid, Scales):
        d = float(x.flat[np.abs(x).argmax()]) / grid.levels[0]
        levels = np.array(grid.levels) * d
    else:
        levels = x.min() + np.ptp(x) / grid.q_max * np.arange(grid.q_max + 1)
    plain = np.square(np.abs(x[..., None] - levels).min(-1)).sum()
    # Scale and minimum are float16: each is off by 2**-11 of itself or by 2**-25, times the steps to a weight.
    slack = 2 * (2 * top * 2.0**-11 + 127 * 2.0**-25)
    assert squared_error(kind, x) ** 0.5 <= plain**0.5 + slack * 32**0.5


@pytest.mark.parametrize("kind", FITTED, ids=repr)
def test_importance_moves_the_error_to_where_it_counts_less(kind):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((64, 1024), np.float32)
    importance = np.exp(2 * rng.standard_normal(1024))
    weighted, plain = (squared_error(kind, x, given, importance) for given in (importance, None))
    assert weighted < 0.93 * plain
    assert squared_error(kind, x, importance) >= squared_error(kind, x)


@pytest.mark.parametrize("kind", FITTED, ids=repr)
def test_weights_that_meet_no_input_give_way_and_are_not_forgotten(kind):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((32, 512), np.float32)
    x[:, ::32] *= 4
    importance = np.ones(512)
    importance[::32] = 0
    assert squared_error(kind, x, importance, importance) < 0.98 * squared_error(kind, x, None, importance)
    group_unseen = np.ones(512)
    group_unseen[:256] = 0
    found = kind.dequantize(kind.quantize(x, group_unseen))
    assert np.corrcoef(found[:, :256].ravel(), x[:, :256].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("kind", FITTED, ids=repr)
def test_only_ratios_of_importance_count(kind):
    rng = np.random.default_rng(4)
    x, importance = rng.standard_normal((3, 512), np.float32), 2.0 ** rng.integers(-3, 4, 512)
    raw = kind.quantize(x, importance)
    for scaled in (importance * 2.0**40, importance * 2.0**-60, (importance * 4).astype(np.float32)):
        np.testing.assert_array_equal(kind.quantize(x, scaled), raw)
    for even in (np.zeros(512), np.full(512, 7.0)):
        np.testing.assert_array_equal(kind.quantize(x, even), kind.quantize(x))


@pytest.mark.parametrize("name", ["Q4_K", "IQ4_NL", "MXFP4"])
def test_every_row_meets_the_importance_of_its_columns(name):
    """Also where a row does not divide the chunks that are computed at a time."""
    kind, rng = FORMATS[name], np.random.default_rng(5)
    x, importance = rng.standard_normal((40, 2816), np.float32), rng.random(2816)
    raw = kind.quantize(x, importance)
    for row in (0, 23, 39):
        np.testing.assert_array_equal(kind.quantize(x[row], importance), raw[row])


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16"])
@pytest.mark.parametrize("bad", [np.ones(255), np.ones((2, 256)), np.full(256, -1.0), np.full(256, np.nan)])
def test_importance_that_cannot_be_is_refused(name, bad):
    with pytest.raises(UsageError, match=r"importance .* 256 columns"):
        FORMATS[name].quantize(np.ones((2, 256), np.float32), bad)


@pytest.mark.parametrize("kind", FITTED, ids=repr)
def test_a_block_is_fitted_alone(kind):
    """Neighbours of other sizes in the same call change nothing of it."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((9, kind.block_size), np.float32) * np.float32(10) ** np.arange(-4, 5)[:, None]
    whole = fit(kind, x.astype(np.float32))
    for i in range(len(x)):
        for together, alone in zip(whole, fit(kind, x[i : i + 1].astype(np.float32)), strict=True):
            np.testing.assert_array_equal(together[i], alone[0])


def test_grids_say_what_can_be_stored():
    for kind in FITTED:
        grid = kind.grid
        assert grid.n_groups * grid.size == kind.block_size
        if isinstance(grid, Scales):
            assert list(grid.levels) == sorted(set(grid.levels))
            assert grid.is_even == (kind.name not in ("IQ4_NL", "IQ4_XS"))
