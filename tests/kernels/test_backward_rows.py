"""Kernels of rows that training adds: each against its NumPy twin, and the twins against torch's gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgellm.kernels import reference, reference_rows
from edgellm.kernels.registry import find

from .compiled import Compiled
from .compiled_rows import CompiledRows
from .test_rows import EXP, N_TOKENS, NORM, ROUNDINGS, WIDTHS, normal

# Sums of up to 1,600 products of numbers near 1 in float32, beside the root of how many they are.
SUM = 1e-6
EPSILON = 1e-5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def of_rows(compiled: Compiled) -> CompiledRows:
    return CompiledRows(compiled)


def gradients(made: torch.Tensor, dy: np.ndarray, *inputs: torch.Tensor) -> list[np.ndarray]:
    """By the inputs of what torch made of them, for the gradient dy of the result."""
    return [found.numpy() for found in torch.autograd.grad(made, inputs, torch.from_numpy(dy).to(made))]


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64)).requires_grad_()


# --- low-rank steps ------------------------------------------------------------------------------------------

RANKS = (1, 3, 8, 16, 21)
# Some count in part, one not at all.
SCALES = np.array([1, 0, -0.5, 2, 0, 0, 1e-3, 3, 1], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("width", WIDTHS)
def test_narrow(of_rows: CompiledRows, rng, width: int, rank: int, dtype: type) -> None:
    weight = normal(rng, rank, width).astype(dtype)
    for n_tokens in N_TOKENS:
        x = normal(rng, n_tokens, width)
        for scales in (None, SCALES[:n_tokens]):
            got, want = (side.narrow(x, weight, 1.5, scales) for side in (of_rows, reference_rows))
            np.testing.assert_allclose(got, want, rtol=0, atol=2 * SUM * np.sqrt(width))
            for token in range(n_tokens):  # alone as among others
                alone = of_rows.narrow(x[token, None], weight, 1.5, None if scales is None else scales[token, None])
                np.testing.assert_array_equal(alone[0], got[token])
            for chunk_rank in (8, 12, 24):  # by rows of the weight as by tokens
                shares = of_rows.narrow(x, weight, 1.5, scales, chunk_rank)
                np.testing.assert_array_equal(shares, got)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("width", [*WIDTHS, 1536 + 80 + 3])
def test_widen(of_rows: CompiledRows, rng, width: int, rank: int, in_place: bool, dtype: type) -> None:
    weight = normal(rng, rank, width).astype(dtype)
    for n_tokens in N_TOKENS:
        y, h = normal(rng, n_tokens, width), normal(rng, n_tokens, rank)
        for scales in (None, SCALES[:n_tokens]):
            got = of_rows.widen(y, h, weight, 0.25, scales, in_place)
            want = reference_rows.widen(y, h, weight, 0.25, scales)
            np.testing.assert_allclose(got, want, rtol=ROUNDINGS, atol=2 * SUM * np.sqrt(rank))
            if scales is not None:
                np.testing.assert_array_equal(got[scales == 0], y[scales == 0])
            for token in range(n_tokens):
                row = slice(token, token + 1)
                alone = of_rows.widen(y[row], h[row], weight, 0.25, None if scales is None else scales[row])
                np.testing.assert_array_equal(alone[0], got[token])
            for chunk_cols, small in ((16, False), (48, True)):
                pieces = of_rows.widen(y, h, weight, 0.25, scales, in_place, chunk_cols, small)
                np.testing.assert_array_equal(pieces, got)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("width", [*WIDTHS, 1536 + 80 + 3])
def test_add_scaled(of_rows: CompiledRows, rng, width: int, in_place: bool) -> None:
    for n_tokens in N_TOKENS:
        y, x = normal(rng, n_tokens, width), normal(rng, n_tokens, width)
        for scales in (None, SCALES[:n_tokens]):
            got = of_rows.add_scaled(y, x, 0.25, scales, in_place)
            want = reference_rows.add_scaled(y, x, 0.25, scales)
            np.testing.assert_allclose(got, want, rtol=ROUNDINGS, atol=SUM)
            if scales is not None:
                np.testing.assert_array_equal(got[scales == 0], y[scales == 0])


def test_a_row_that_counts_nothing_is_not_looked_at(of_rows: CompiledRows, rng) -> None:
    x, h, weight = normal(rng, 3, 40), normal(rng, 3, 8), normal(rng, 8, 40)
    scales = np.array([1, 0, 1], np.float32)
    x[1], h[1] = np.nan, np.inf
    assert of_rows.narrow(x, weight, 1.0, scales)[1].tolist() == [0] * 8
    y = normal(rng, 3, 40)
    np.testing.assert_array_equal(of_rows.widen(y, h, weight, 1.0, scales)[1], y[1])
    np.testing.assert_array_equal(of_rows.add_scaled(y, x, 1.0, scales)[1], y[1])


def test_a_step_of_scale_0_leaves_rows_as_they_are(of_rows: CompiledRows, rng) -> None:
    y, h, weight = normal(rng, 3, 40), normal(rng, 3, 8), normal(rng, 8, 40)
    np.testing.assert_array_equal(of_rows.widen(y, h, weight, 0.0), y)


# --- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize(("n_groups", "n_cols"), [(1, 1), (1, 33), (1, 576), (3, 64), (4, 80)])
def test_rms_norm_backward(of_rows: CompiledRows, rng, n_tokens, n_groups: int, n_cols: int, in_place: bool) -> None:
    shape = n_tokens, n_groups * n_cols
    x, dy, weight = 3 * normal(rng, *shape), normal(rng, *shape), normal(rng, n_cols)
    got = of_rows.rms_norm_backward(x, weight, dy, EPSILON, n_groups, in_place)
    want = reference_rows.rms_norm_backward(x, weight, dy, EPSILON, n_groups)
    # Of one column, all but epsilon's share cancels out.
    largest = np.abs(dy * np.tile(weight, n_groups)).max(initial=0) / np.sqrt(np.square(x).min(initial=1))
    np.testing.assert_allclose(got, want, rtol=NORM, atol=NORM * (largest if n_cols == 1 else 1))


def test_rms_norm_backward_is_torchs(rng) -> None:
    x, dy, weight = 3 * normal(rng, 5, 3 * 20), normal(rng, 5, 3 * 20), normal(rng, 20)
    inputs, heads = tensor(x), tensor(weight)
    normed = torch.nn.functional.rms_norm(inputs.reshape(5, 3, 20), (20,), heads, EPSILON).reshape(5, 60)
    (want,) = gradients(normed, dy, inputs)
    np.testing.assert_allclose(reference_rows.rms_norm_backward(x, weight, dy, EPSILON, 3), want, atol=1e-6)


def test_rms_norm_backward_of_zeros_is_held_by_epsilon(of_rows: CompiledRows) -> None:
    zeros, ones = np.zeros((1, 64), np.float32), np.ones(64, np.float32)
    got = of_rows.rms_norm_backward(zeros, ones, ones[None], 1e-4)
    np.testing.assert_allclose(got, 100, rtol=NORM)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("n_groups", "n_cols"), [(1, 33), (1, 576), (3, 64)])
def test_layer_norm_backward(of_rows: CompiledRows, rng, n_groups: int, n_cols: int, each: bool) -> None:
    for n_tokens in N_TOKENS:
        shape = n_tokens, n_groups * n_cols
        x, dy = 3 * normal(rng, *shape) + 1, normal(rng, *shape)
        weight = normal(rng, n_groups, n_cols) if each else normal(rng, n_cols)
        want = reference_rows.layer_norm_backward(x, weight, dy, EPSILON, n_groups)
        for in_place in (False, True):
            got = of_rows.layer_norm_backward(x, weight, dy, EPSILON, n_groups, in_place)
            np.testing.assert_allclose(got, want, rtol=NORM, atol=NORM)
        sums, bias_sums = normal(rng, *weight.shape), normal(rng, *weight.shape)
        for got, want in zip(
            of_rows.layer_norm_sums(sums, bias_sums, x, dy, EPSILON, n_groups),
            reference_rows.layer_norm_sums(sums, bias_sums, x, dy, EPSILON, n_groups),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=NORM, atol=NORM * np.sqrt(1 + n_tokens * n_groups))


def test_layer_norm_backward_is_torchs(rng) -> None:
    x, dy, weight, bias = 3 * normal(rng, 5, 20), normal(rng, 5, 20), normal(rng, 20), normal(rng, 20)
    inputs = tensor(x), tensor(weight), tensor(bias)
    made = torch.nn.functional.layer_norm(inputs[0], (20,), *inputs[1:], EPSILON)
    want = gradients(made, dy, *inputs)
    np.testing.assert_allclose(reference_rows.layer_norm_backward(x, weight, dy, EPSILON), want[0], atol=1e-6)
    zeros = np.zeros(20, np.float32)
    for got, wanted in zip(reference_rows.layer_norm_sums(zeros, zeros, x, dy, EPSILON), want[1:], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_soft_cap_backward(of_rows: CompiledRows, rng, width: int) -> None:
    x = tensor(20 * normal(rng, 5, width))
    made = 3 * torch.tanh(x / 3)
    y, dy = made.detach().numpy().astype(np.float32), normal(rng, 5, width)
    (wanted,) = gradients(made, dy, x)
    want = reference_rows.soft_cap_backward(y, dy, 3.0)
    np.testing.assert_allclose(want, wanted, atol=1e-6)
    for in_place in (False, True):
        np.testing.assert_allclose(of_rows.soft_cap_backward(y, dy, 3.0, in_place), want, atol=1e-6)


GATES = ["silu", "gelu", "gelu_erf", "relu", "relu_squared", "clamped_swiglu", "sigmoid", "linear"]


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_glu_backward(of_rows: CompiledRows, rng, activation: str, n_tokens: int, width: int) -> None:
    gate, up, dy = 5 * normal(rng, n_tokens, width), normal(rng, n_tokens, width), normal(rng, n_tokens, width)
    want = reference_rows.glu_backward(gate, up, dy, activation)
    for in_place in (False, True):
        got = of_rows.glu_backward(gate, up, dy, activation, in_place)
        # Where a slope is nearly 0, it is a difference of numbers near 1.
        np.testing.assert_allclose(got[0], want[0], rtol=EXP, atol=EXP * (1 if activation in ("silu", "gelu") else 20))
        np.testing.assert_allclose(got[1], want[1], rtol=EXP, atol=1e-12 if activation != "gelu_erf" else 1e-6)


TORCH = {
    "silu": torch.nn.functional.silu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_erf": torch.nn.functional.gelu,
    "relu": torch.relu,
    "relu_squared": lambda x: torch.relu(x) ** 2,
    "tanh": torch.tanh,
}
TORCH_GATES = TORCH | {"sigmoid": torch.sigmoid, "linear": lambda x: x}


@pytest.mark.parametrize("activation", GATES)
def test_glu_backward_is_torchs(rng, activation: str) -> None:
    gate, up, dy = 5 * normal(rng, 4, 50), 4 * normal(rng, 4, 50), normal(rng, 4, 50)
    x, y = inputs = tensor(gate), tensor(up)
    if activation == "clamped_swiglu":
        near, factor = x.clamp(max=7), y.clamp(-7, 7)
        made = near * torch.sigmoid(1.702 * near) * (factor + 1)
    else:
        made = TORCH_GATES[activation](x) * y
    want = gradients(made, dy, *inputs)
    for got, wanted in zip(reference_rows.glu_backward(gate, up, dy, activation), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_glu_backward_of_extremes(of_rows: CompiledRows, activation: str) -> None:
    gate = np.array([[-1e30, -1e15, -100, -90, 0, 90, 100, 1e15, 1e30, np.nan]], np.float32)
    ones = np.ones_like(gate)
    d_gate, d_up = of_rows.glu_backward(gate, ones, ones, activation)
    assert np.abs(d_gate[0, :4]).max() < 1e-6
    assert np.abs(d_up[0, :4]).max() < 1e-6
    assert d_gate[0, 4] == 0.5
    np.testing.assert_array_equal(d_gate[0, 5:9], 1)
    np.testing.assert_array_equal(d_up[0, 5:9], gate[0, 5:9])
    assert np.isnan([d_gate[0, 9], d_up[0, 9]]).all()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("head_dim", "n_rot"), [(64, 64), (80, 32), (16, 2), (256, 256)])
def test_rope_inverse(compiled: Compiled, rng, interleaved: bool, head_dim: int, n_rot: int) -> None:
    for n_tokens in N_TOKENS:
        x = normal(rng, n_tokens, 3, head_dim)
        angles = rng.uniform(0, 1000, (n_tokens, n_rot // 2))
        got = compiled.rope(x, angles, interleaved, inverse=True)
        np.testing.assert_allclose(got, reference_rows.rope_inverse(x, angles, interleaved), atol=5 * ROUNDINGS)
        np.testing.assert_allclose(compiled.rope(got, angles, interleaved), x, atol=10 * ROUNDINGS)
        np.testing.assert_array_equal(compiled.rope(x, angles, interleaved, in_place=True, inverse=True), got)


def test_an_option_that_is_on_goes_by_its_name() -> None:
    assert [find("rope", inverse=inverse).name for inverse in (False, True)] == ["rope", "rope.inverse"]


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_inverse_is_the_transpose(rng, interleaved: bool) -> None:
    x, dy = normal(rng, 4, 3, 20), normal(rng, 4, 3, 20)
    angles = rng.uniform(0, 1000, (4, 6))
    turned, back = reference.rope(x, angles, interleaved), reference_rows.rope_inverse(dy, angles, interleaved)
    assert np.vdot(turned, dy) == pytest.approx(np.vdot(x, back), abs=1e-4)


# --- the loss ------------------------------------------------------------------------------------------------

VOCABULARIES = (1, 2, 15, 16, 17, 1000, 49155)
LIKELIHOOD = 1e-6  # of sums in float64 of exponentials that are within some units of 6e-8


def some_targets(rng: np.random.Generator, n_tokens: int, n_cols: int) -> np.ndarray:
    targets = rng.integers(0, n_cols, n_tokens)
    targets[1::3] = -1
    return targets


@pytest.mark.parametrize("n_cols", VOCABULARIES)
def test_cross_entropy(of_rows: CompiledRows, rng, n_cols: int) -> None:
    for n_tokens in (0, 1, 5):
        logits, targets = 8 * normal(rng, n_tokens, n_cols), some_targets(rng, n_tokens, n_cols)
        for weights in (None, rng.uniform(0, 3, n_tokens).astype(np.float32)):
            nll, gradient = of_rows.cross_entropy(logits, targets, weights)
            want_nll, want_gradient = reference_rows.cross_entropy(logits, targets, weights)
            np.testing.assert_allclose(nll, want_nll, rtol=LIKELIHOOD, atol=LIKELIHOOD)
            np.testing.assert_allclose(gradient, want_gradient, rtol=EXP, atol=1e-12)
            assert not nll[targets < 0].any() and not gradient[targets < 0].any()
            elsewhere = of_rows.cross_entropy(logits, targets, weights, in_place=False)
            np.testing.assert_array_equal(elsewhere[0], nll)
            np.testing.assert_array_equal(elsewhere[1], gradient)


def test_cross_entropy_without_gradient_leaves_the_logits(of_rows: CompiledRows, rng) -> None:
    logits, targets = 8 * normal(rng, 5, 100), some_targets(rng, 5, 100)
    nll, left = of_rows.cross_entropy(logits, targets, gradient=False)
    np.testing.assert_array_equal(nll, of_rows.cross_entropy(logits, targets)[0])
    np.testing.assert_array_equal(left, logits)


def test_cross_entropy_is_torchs(of_rows: CompiledRows, rng) -> None:
    logits, weights = 3 * normal(rng, 6, 80), rng.uniform(0, 3, 6).astype(np.float32)
    targets = some_targets(rng, 6, 80)
    inputs = tensor(logits)
    nll = torch.nn.functional.cross_entropy(inputs, torch.from_numpy(targets), ignore_index=-1, reduction="none")
    (gradient,) = gradients(nll, weights, inputs)
    for side in (of_rows, reference_rows):
        got = side.cross_entropy(logits, targets, weights)
        np.testing.assert_allclose(got[0], nll.detach().numpy(), rtol=LIKELIHOOD)
        np.testing.assert_allclose(got[1], gradient, rtol=EXP, atol=1e-9)


@pytest.mark.parametrize("shift", [0, 1000, -1000, 3e38, -3e38])
def test_cross_entropy_of_large_logits(of_rows: CompiledRows, shift: float) -> None:
    """One logit above all others by 50, wherever zero is; beyond 2**24, equal ones."""
    logits = np.full((2, 40), shift, np.float32)
    logits[:, 7] += np.float32(50)
    nll, gradient = of_rows.cross_entropy(logits, np.array([7, 8]))
    want_nll, want_gradient = reference_rows.cross_entropy(logits, np.array([7, 8]))
    np.testing.assert_allclose(nll, want_nll, rtol=LIKELIHOOD, atol=0)
    np.testing.assert_allclose(gradient, want_gradient, rtol=EXP, atol=1e-20)


def test_the_loss_of_a_likely_target_is_exact(of_rows: CompiledRows) -> None:
    """Where a likelihood of 1 less so little is 1 in float32."""
    for least in (1e-9, 1e-12):
        logits = np.array([[0, np.log(least)]], np.float32)
        nll, gradient = of_rows.cross_entropy(logits, np.array([0]))
        np.testing.assert_allclose(nll, least, rtol=1e-3)
        np.testing.assert_allclose(gradient[0], [-least, least], rtol=1e-3)


@pytest.mark.parametrize("n_cols", [5, 16, 40])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_logit_that_is_no_number_spoils_its_row(of_rows: CompiledRows, rng, n_cols: int, bad: float) -> None:
    for at in range(n_cols):
        logits = normal(rng, 2, n_cols)
        logits[1, at] = bad
        nll, gradient = of_rows.cross_entropy(logits, np.array([1, 1]))
        assert np.isfinite(nll[0]) and np.isfinite(gradient[0]).all()
        assert np.isnan(nll[1]) and np.isnan(gradient[1]).all()


def test_the_logarithm_of_equal_chances(of_rows: CompiledRows) -> None:
    """Of every power of two and what lies between: log n for n equal logits."""
    for n in (1, 2, 3, 5, 6, 7, 11, 12, 100, 1023, 1024, 1025, 1449, 100_000, 262_144):
        nll, _ = of_rows.cross_entropy(np.full((1, n), 2.5, np.float32), np.array([n - 1]))
        assert nll[0] == np.float32(np.log(n))


# --- factors of columns, and sums over the tokens ------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_multiply_columns_is_exact(of_rows: CompiledRows, rng, n_tokens: int, width: int) -> None:
    x, weight = normal(rng, n_tokens, width), normal(rng, width)
    for in_place in (False, True):
        got = of_rows.multiply_columns(x, weight, in_place)
        np.testing.assert_array_equal(got, reference_rows.multiply_columns(x, weight))


@pytest.mark.parametrize("n_tokens", [*N_TOKENS, 300])
@pytest.mark.parametrize("width", WIDTHS)
def test_column_sums_and_products(of_rows: CompiledRows, rng, n_tokens: int, width: int) -> None:
    a, b, sums = normal(rng, n_tokens, width), normal(rng, n_tokens, width), normal(rng, width)
    # In float64 up to the last step, which rounds once.
    for got, want in (
        (of_rows.column_sums(sums, a), reference_rows.column_sums(sums, a)),
        (of_rows.column_products(sums, a, b), reference_rows.column_products(sums, a, b)),
    ):
        np.testing.assert_allclose(got, want, rtol=ROUNDINGS / 4, atol=1e-12)


@pytest.mark.parametrize("n_tokens", [*N_TOKENS, 300])
@pytest.mark.parametrize(("n_groups", "n_cols"), [(1, 1), (1, 33), (1, 576), (3, 64), (4, 80)])
def test_rms_norm_weight_sum(of_rows: CompiledRows, rng, n_tokens: int, n_groups: int, n_cols: int) -> None:
    shape = n_tokens, n_groups * n_cols
    x, dy, sums = 3 * normal(rng, *shape), normal(rng, *shape), normal(rng, n_cols)
    got, want = (side.rms_norm_weight_sum(sums, x, dy, EPSILON, n_groups) for side in (of_rows, reference_rows))
    np.testing.assert_allclose(got, want, rtol=NORM, atol=NORM * np.sqrt(1 + n_tokens * n_groups))


def test_rms_norm_weight_sum_is_torchs(rng) -> None:
    x, dy, weight = 3 * normal(rng, 5, 3 * 20), normal(rng, 5, 3 * 20), normal(rng, 20)
    heads = tensor(weight)
    normed = torch.nn.functional.rms_norm(tensor(x).reshape(5, 3, 20), (20,), heads, EPSILON).reshape(5, 60)
    (want,) = gradients(normed, dy, heads)
    got = reference_rows.rms_norm_weight_sum(np.zeros(20, np.float32), x, dy, EPSILON, 3)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_embed_backward(of_rows: CompiledRows, rng, width: int) -> None:
    for n_tokens in N_TOKENS:
        ids, dy, sums = rng.integers(0, 7, n_tokens), normal(rng, n_tokens, width), normal(rng, 7, width)
        got, want = (side.embed_backward(sums, ids, dy, 1.5) for side in (of_rows, reference_rows))
        np.testing.assert_allclose(got, want, rtol=ROUNDINGS, atol=3 * ROUNDINGS)
        unused = np.setdiff1d(np.arange(7), ids)
        np.testing.assert_array_equal(got[unused], sums[unused])


def test_embed_backward_is_torchs(rng) -> None:
    ids, dy, weight = np.array([3, 0, 3, 3, 6]), normal(rng, 5, 20), tensor(normal(rng, 7, 20))
    (want,) = gradients(1.5 * torch.nn.functional.embedding(torch.from_numpy(ids), weight), dy, weight)
    got = reference_rows.embed_backward(np.zeros((7, 20), np.float32), ids, dy, 1.5)
    np.testing.assert_allclose(got, want, atol=1e-6)


# --- activations, and rows of a table --------------------------------------------------------------------------


@pytest.mark.parametrize("activation", TORCH)
def test_activate(of_rows: CompiledRows, rng, activation: str) -> None:
    for width in WIDTHS:
        x, dy = 4 * normal(rng, 9, width), normal(rng, 9, width)
        x[:3, 0] = 0, 100, -100
        for in_place in (False, True):
            got = of_rows.activate(x, activation, in_place)
            np.testing.assert_allclose(got, reference_rows.activate(x, activation), rtol=EXP, atol=1e-5)
            got = of_rows.activate_backward(x, dy, activation, in_place)
            np.testing.assert_allclose(got, reference_rows.activate_backward(x, dy, activation), rtol=EXP, atol=1e-5)
    assert np.isnan(of_rows.activate(np.full((1, 5), np.nan, np.float32), activation)).all()


@pytest.mark.parametrize("activation", ["gelu_erf", "relu_squared"])
def test_activations_without_a_gate(of_rows: CompiledRows, rng, activation: str) -> None:
    for x in (np.float32([[-30, -4, -1, -1e-3, 0, 1e-3, 1, 4, 30]]), normal(rng, 5, 33) * 2):
        want = reference.glu(x, np.ones_like(x), activation)
        for in_place in (False, True):
            np.testing.assert_allclose(of_rows.activate(x, activation, in_place), want, rtol=EXP, atol=1e-6)
    assert np.isnan(of_rows.activate(np.full((1, 5), np.nan, np.float32), activation)).all()


@pytest.mark.parametrize("activation", TORCH)
def test_activate_is_torchs(rng, activation: str) -> None:
    x, dy = tensor(normal(rng, 6, 30)), normal(rng, 6, 30)
    made = TORCH[activation](x)
    (want,) = gradients(made, dy, x)
    plain = x.detach().numpy().astype(np.float32)
    np.testing.assert_allclose(reference_rows.activate(plain, activation), made.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(reference_rows.activate_backward(plain, dy, activation), want, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_a_table(of_rows: CompiledRows, rng, width: int) -> None:
    table = normal(rng, 5, width)
    for n_tokens in N_TOKENS:
        x, dy = normal(rng, n_tokens, width), normal(rng, n_tokens, width)
        places = rng.integers(0, 6, n_tokens).astype(np.float32)
        for rows in (table, None):
            want = reference_rows.replace_rows(x, rows, places)
            for in_place in (False, True):
                np.testing.assert_array_equal(of_rows.replace_rows(x, rows, places, in_place), want)
        got, want = (side.replaced_rows_sum(table, dy, places) for side in (of_rows, reference_rows))
        np.testing.assert_allclose(got, want, rtol=ROUNDINGS, atol=3 * ROUNDINGS)
        unused = np.setdiff1d(np.arange(1, 6), places) - 1
        np.testing.assert_array_equal(got[unused], table[unused])


# --- dropout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.999])
def test_dropout(of_rows: CompiledRows, rng, p: float, seed: int) -> None:
    for width in WIDTHS:
        x = normal(rng, 9, width)
        want = reference_rows.dropout(x, p, seed)
        for in_place in (False, True):
            np.testing.assert_array_equal(of_rows.dropout(x, p, seed, in_place), want)
        np.testing.assert_array_equal(of_rows.dropout(x[:4], p, seed), want[:4])


def test_dropout_of_nothing_changes_nothing(of_rows: CompiledRows, rng) -> None:
    x = normal(rng, 9, 100)
    np.testing.assert_array_equal(of_rows.dropout(x, 0.0, 5), x)
    for in_place in (False, True):
        np.testing.assert_array_equal(of_rows.dropout(x, 0.5, 5, in_place, is_on=False), x)


def test_split_mix_64() -> None:
    """Against its authors' code: what Vigna's splitmix64.c gives for this seed."""
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert reference_rows.split_mix_64(1234567, 5).tolist() == want


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    ones = np.ones((500, 1000), np.float32)
    for seed in (0, 1, 2):
        dropped = reference_rows.dropout(ones, p, seed)
        for share in ((dropped == 0).mean(axis) for axis in (None, 0, 1)):
            n = ones.size // np.size(share)
            assert np.abs(share - p).max() < 5 * np.sqrt(p * (1 - p) / n)
        assert dropped.mean() == pytest.approx(1, abs=5 * np.sqrt(p / (1 - p) / ones.size))


def test_dropouts_of_tokens_columns_and_seeds_have_nothing_in_common() -> None:
    ones = np.ones((200, 600), np.float32)
    masks = [reference_rows.dropout(ones, 0.5, seed) - 1 for seed in (0, 1, 2, 1 << 32, -1)]
    for other in masks[1:]:  # seeds
        assert abs((masks[0] * other).mean()) < 5 / np.sqrt(ones.size)
    for mask, n in ((masks[0], 600), (masks[0].T, 200)):  # tokens, and columns
        alike = mask @ mask.T / n
        assert np.abs(alike - np.eye(len(mask))).max() < 6 / np.sqrt(n)
    for shift in (1, 2, 16, 64):  # neighbours, in both directions
        assert abs((masks[0][:, shift:] * masks[0][:, :-shift]).mean()) < 5 / np.sqrt(ones.size)
        assert abs((masks[0][shift:] * masks[0][:-shift]).mean()) < 5 / np.sqrt(ones.size)
