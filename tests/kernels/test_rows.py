"""Kernels that work on rows of activations: each against its NumPy twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.kernels import reference
from edgellm.kernels.group_sums import ALL_SUMS
from edgellm.kernels.isa import AVX2, AVX512, Isa
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.quants import FORMATS, BlockFormat

from .compiled import Compiled
from .compiled_rows import CompiledRows
from .conftest import DISTINCT, is_usual, on_all, thorough_unless
from .weights import random_weights

# A few float32 roundings (6e-8 each) of numbers near 1.
ROUNDINGS = 5e-7
# Sums of up to 1,000 squares in float32, added in several lanes.
NORM = 2e-6
# Sums of a few numbers in float64, in another order.
FLOAT64_SUM = 1e-14
# `Vocabulary.exp` is within some units of 6e-8, and its argument, up to 20, was rounded before.
EXP = 4e-6

N_TOKENS = (0, 1, 3, 9)
WIDTHS = (1, 16, 33, 576)  # also such that no register divides
ACTIVATIONS = ("silu", "gelu", "gelu_erf", "relu", "relu_squared")
FEW_FORMATS = ("F16", "Q4_1", "Q6_K")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def isas_and_formats() -> list[Any]:
    """All formats where registers are wide, and some on the others."""
    return [
        thorough_unless(is_usual(isa, fmt), isa, fmt)
        for isa in DISTINCT
        for fmt in FORMATS.values()
        if isa in (AVX512, AVX2) or fmt.name in FEW_FORMATS
    ]


@pytest.mark.parametrize(("isa", "fmt"), isas_and_formats(), ids=lambda x: getattr(x, "name", None))
def test_embed(compiled_for, isa: Isa, fmt: BlockFormat, rng: np.random.Generator) -> None:
    compiled = compiled_for(isa)
    for n_cols in (fmt.block_size, 3 * fmt.block_size):
        weights = random_weights(fmt, 5, n_cols, rng)
        ids = np.array([4, 0, 2, 2])  # the last row ends at the wall
        got, want = compiled.embed(ids, weights, fmt, 1.5), reference.embed(ids, weights, fmt, 1.5)
        # Kernels multiply u - zero, or add a minimum, in one more rounding than ggml's order has.
        np.testing.assert_allclose(got, want, rtol=ROUNDINGS, atol=ROUNDINGS * np.abs(want).max())


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_add_and_select_rows_are_exact(compiled: Compiled, rng, n_tokens: int, width: int) -> None:
    a, b = normal(rng, n_tokens, width), normal(rng, n_tokens, width)
    np.testing.assert_array_equal(compiled.add(a, b), reference.add(a, b))
    wanted = rng.integers(0, n_tokens, 5) if n_tokens else np.zeros(0, int)
    np.testing.assert_array_equal(compiled.select_rows(a, wanted), reference.select_rows(a, wanted))


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_add_bias_is_exact(compiled: Compiled, rng, n_tokens: int, width: int) -> None:
    x, bias = normal(rng, n_tokens, width), normal(rng, width)
    for in_place in (False, True):
        np.testing.assert_array_equal(compiled.add_bias(x, bias, in_place), reference.add_bias(x, bias))


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_choose_is_exact(compiled: Compiled, rng, n_tokens: int, width: int) -> None:
    x, other = normal(rng, n_tokens, width), normal(rng, n_tokens, width)
    scales = rng.choice(np.float32([0, -0.0, 1, -0.5, 1e-30]), n_tokens)
    for in_place in (False, True):
        found = compiled.choose(x, other, scales, in_place)
        np.testing.assert_array_equal(found, reference.choose(x, other, scales))


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize(("old", "new"), [(8, 16), (100, 112), (112, 100), (5, 48), (16, 16), (1, 16)])
def test_resize_heads_is_exact(compiled: Compiled, rng, n_tokens: int, old: int, new: int) -> None:
    x = normal(rng, n_tokens, 3 * old)
    np.testing.assert_array_equal(compiled.resize_heads(x, 3, new), reference.resize_heads(x, 3, new))


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_sum_squares(compiled: Compiled, rng, n_tokens: int, width: int) -> None:
    x, sums = normal(rng, n_tokens, width), rng.random(width)
    got = compiled.sum_squares(x, sums)
    np.testing.assert_allclose(got, reference.sum_squares(x, sums), rtol=FLOAT64_SUM)
    in_two = compiled.sum_squares(x[n_tokens // 2 :], compiled.sum_squares(x[: n_tokens // 2], sums))
    np.testing.assert_array_equal(in_two, got)  # as if in one batch


@pytest.mark.parametrize("n_cols", [1, 63, 64, 65, 200, 1000])
def test_maxima(compiled: Compiled, rng, n_cols: int) -> None:
    x = rng.standard_normal((3, n_cols), np.float32)
    x[1] *= np.float32(1e37)
    x[2, :: max(1, n_cols // 7)] = [np.nan, np.inf, -np.inf][n_cols % 3]
    for chunk_groups in (1, 2, 64):
        np.testing.assert_array_equal(compiled.maxima(x, chunk_groups), reference.maxima(x))


@pytest.mark.parametrize("n_cols", [5, 64, 130])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_that_is_no_number_spoils_its_maximum(compiled: Compiled, rng, n_cols: int, bad: float) -> None:
    for at in range(n_cols):
        x = rng.standard_normal((1, n_cols), np.float32)
        x[0, at] = bad
        assert np.isnan(compiled.maxima(x, 2)[0]).nonzero()[0].tolist() == [at // MAXIMA_GROUP]


def test_sum_squares_of_what_float32_cannot_hold(compiled: Compiled) -> None:
    x = np.array([[1e30, 1e-30, 0, np.inf, np.nan]] * 2, np.float32)
    want = [2e60, 2e-60, 0, np.inf, np.nan]
    np.testing.assert_allclose(compiled.sum_squares(x, np.zeros(5)), want, rtol=3 * ROUNDINGS)


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize(("n_groups", "n_cols"), [(1, 1), (1, 33), (1, 576), (3, 64), (4, 80)])
def test_rms_norm(compiled: Compiled, rng, n_tokens: int, n_groups: int, n_cols: int) -> None:
    x, weight = 30 * normal(rng, n_tokens, n_groups * n_cols), normal(rng, n_cols)
    got = compiled.rms_norm(x, weight, 1e-5, n_groups)
    np.testing.assert_allclose(got, reference.rms_norm(x, weight, 1e-5, n_groups), rtol=NORM)


def test_rms_norm_of_zeros_is_held_by_epsilon(compiled: Compiled) -> None:
    zeros, ones = np.zeros((1, 64), np.float32), np.ones(64, np.float32)
    np.testing.assert_array_equal(compiled.rms_norm(zeros, ones, 1e-6), zeros)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_glu(compiled: Compiled, rng, activation: str, n_tokens: int, width: int) -> None:
    gate, up = 5 * normal(rng, n_tokens, width), normal(rng, n_tokens, width)
    got, want = (side.glu(gate, up, activation) for side in (compiled, reference))
    np.testing.assert_allclose(got, want, rtol=EXP, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_of_extremes(compiled: Compiled, activation: str) -> None:
    gate = np.array([[-1e30, -100, -90, -0.0, 0, 90, 1e30, np.inf, np.nan]], np.float32)
    up = np.ones_like(gate)
    got = compiled.glu(gate, up, activation)[0]
    assert np.abs(got[:5]).max() < 1e-6
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got[5:8], gate[0, 5:8] ** (2 if activation == "relu_squared" else 1))
    assert np.isnan(got[8])


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("head_dim", "n_rot"), [(64, 64), (80, 32), (16, 2), (256, 256)])
def test_rope(compiled: Compiled, rng, interleaved: bool, head_dim: int, n_rot: int) -> None:
    for n_tokens in N_TOKENS:
        x = normal(rng, n_tokens, 3, head_dim)
        angles = rng.uniform(0, 1000, (n_tokens, n_rot // 2))
        got, want = compiled.rope(x, angles, interleaved), reference.rope(x, angles, interleaved)
        np.testing.assert_allclose(got, want, atol=5 * ROUNDINGS)
        np.testing.assert_array_equal(got[..., n_rot:], x[..., n_rot:])
        np.testing.assert_array_equal(compiled.rope(x, angles, interleaved, in_place=True), got)


@on_all
@pytest.mark.parametrize("n_planes", [1, 2])
@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("n_cols", [32, 96, 768])
def test_quantize_is_exact(compiled: Compiled, rng, n_tokens: int, n_cols: int, n_planes: int) -> None:
    x = (normal(rng, n_tokens, n_cols) * 10.0 ** rng.integers(-30, 30, (n_tokens, 1))).astype(np.float32)
    x[:, 10:14] = [0, -0.0, 1e-44, -1e-44]
    x[:, 32:64] = 0  # a group of nothing
    for got, want in zip(compiled.quantize(x, n_planes), reference.quantize(x, n_planes), strict=True):
        np.testing.assert_array_equal(got, want)


@on_all
@pytest.mark.parametrize("n_planes", [1, 2])
@pytest.mark.parametrize("n_cols", [32, 96, 768])
def test_sums_of_groups_are_exact(compiled: Compiled, rng, n_cols: int, n_planes: int) -> None:
    """All of them, and each by itself, where the others have no place."""
    x = normal(rng, 3, n_cols)
    for wanted in (ALL_SUMS, *([kind] for kind in ALL_SUMS)):
        quantized, made = compiled.quantize_for(x, wanted, n_planes)
        for kind, sums in made.items():
            np.testing.assert_array_equal(sums, quantized.sums(kind), err_msg=kind.field)
            by_hand = quantized.dequantize().reshape(3, -1, kind.scale_group).sum(-1)
            if kind.zero:
                by_hand *= -kind.zero / np.repeat(quantized.d, 32 // kind.scale_group, axis=1).astype(np.float64)
            np.testing.assert_allclose(sums, by_hand, rtol=1e-6, err_msg=kind.field)


@on_all
def test_two_planes_are_as_exact_as_16_bits(compiled: Compiled, rng) -> None:
    x = normal(rng, 50, 768)
    errors = np.abs(compiled.quantize(x, 2).dequantize() - x).reshape(50, -1, 32)
    steps = errors / np.abs(x).reshape(50, -1, 32).max(-1, keepdims=True) * (127 * 256)
    assert steps.max() <= 1.001  # half a step of the first plane is a step too many for the second,
    assert (steps > 0.501).mean() < 1 / 128  # which happens once in 256
    assert np.sqrt(np.square(steps).mean()) < 1.01 / np.sqrt(12)


@on_all
@pytest.mark.parametrize("n_planes", [1, 2])
@pytest.mark.parametrize("size", [1e-34, 1e-36, 1e-38, 1e-42])
def test_quantize_of_next_to_nothing(compiled: Compiled, rng, size: float, n_planes: int) -> None:
    """So small that 127 / largest is infinite."""
    x = (rng.standard_normal((2, 64)) * size).astype(np.float32)
    for got, want in zip(compiled.quantize(x, n_planes), reference.quantize(x, n_planes), strict=True):
        np.testing.assert_array_equal(got, want)


@on_all
def test_quantize_rounds_ties_to_even(compiled: Compiled) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]
    assert compiled.quantize(x).q[0, :6].tolist() == [127, 0, 2, 2, 0, -2]


@on_all
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_does_not_hide_what_is_not_finite(compiled: Compiled, rng, bad: float) -> None:
    x = normal(rng, 1, 96)
    for place in (32, 50, 63):  # anywhere in the second group
        spoilt = x.copy()
        spoilt[0, place] = bad
        d = compiled.quantize(spoilt).d[0]
        assert np.isfinite(d).tolist() == [True, False, True]


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize(("n_groups", "n_cols"), [(1, 1), (1, 33), (3, 16), (1, 576), (2, 80)])
def test_layer_norm(compiled: Compiled, rng, n_tokens: int, n_groups: int, n_cols: int) -> None:
    """Of rows far from 0, too; with weights for each group, or for all."""
    x = normal(rng, n_tokens, n_groups * n_cols) + 5
    for shape in ((n_cols,), (n_groups, n_cols)):
        weight, bias = normal(rng, *shape), normal(rng, *shape)
        got = CompiledRows(compiled).layer_norm(x, weight, bias, 1e-5, n_groups)
        np.testing.assert_allclose(got, reference.layer_norm(x, weight, bias, 1e-5, n_groups), atol=10 * NORM)


def test_layer_norm_of_one_number_is_the_bias(compiled: Compiled) -> None:
    x = np.full((2, 48), 3.25, np.float32)
    bias = np.arange(48, dtype=np.float32)
    np.testing.assert_array_equal(CompiledRows(compiled).layer_norm(x, bias + 1, bias, 1e-5), [bias, bias])


@pytest.mark.parametrize("in_place", [False, True])
def test_scale_and_soft_cap(compiled: Compiled, rng, in_place: bool) -> None:
    of_rows, x = CompiledRows(compiled), normal(rng, 5, 33) * 20
    x[0, :7] = [0, 1e-6, -1e-3, 5e4, -1e30, np.inf, -np.inf]
    np.testing.assert_array_equal(of_rows.by_factor("scale", x, 0.3, in_place), x * np.float32(0.3))
    for cap in (2.0, 30.0):
        got = of_rows.by_factor("soft_cap", x, cap, in_place)
        np.testing.assert_allclose(got, reference.soft_cap(x, cap), rtol=ROUNDINGS)
    assert np.isnan(of_rows.by_factor("soft_cap", np.full((1, 3), np.nan, np.float32), 30.0, in_place)).all()


@pytest.mark.parametrize(("first", "n_cols", "out_first", "out_cols"), [(0, 1, 0, 0), (7, 17, 0, 0), (5, 20, 9, 40)])
def test_columns_are_exact(compiled: Compiled, rng, first: int, n_cols: int, out_first: int, out_cols: int) -> None:
    x = normal(rng, 5, 33)
    asked = (first, n_cols, out_first, out_cols)
    np.testing.assert_array_equal(CompiledRows(compiled).columns(x, *asked), reference.columns(x, *asked))
