"""Mixtures of experts: kernels against their twins, and each way to compute to the bit against the others."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from edgellm.kernels import reference
from edgellm.kernels import reference_experts as twins
from edgellm.kernels.isa import Isa
from edgellm.kernels.reference import Quantized
from edgellm.quants import FORMATS, BlockFormat

from . import compiled_experts as compiled
from .conftest import AVAILABLE, DISTINCT, thorough_unless
from .test_linear import FEW_FORMATS, LINEAR, same_bits
from .weights import BLOCKS, FLOATS, random_weights

# A softmax of a few hundred numbers in float32.
WEIGHTS = 2e-6
SOME_FORMATS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "MXFP4")
SHAPES = [(1, 1, 1, 1), (1, 8, 2, 17), (3, 4, 4, 40), (9, 6, 2, 7), (33, 3, 2, 16), (40, 16, 5, 33), (5, 4, 3, 48)]
ROUTINGS = [
    {},
    {"normalize": False, "scale": 2.5},
    {"scoring": "sigmoid"},
    {"scoring": "sigmoid", "n_groups": 4, "n_groups_used": 2, "n_ranked": 2, "scale": 1.7},
    {"scoring": "softmax", "n_groups": 8, "n_groups_used": 3, "normalize": False},
    {"scoring": "logits"},
]


def for_all(formats: list[BlockFormat]) -> pytest.MarkDecorator:
    """Some formats on the best instruction set, and two on the others: the products are those of `linear.py`."""
    pairs = [
        thorough_unless(fmt.name in SOME_FORMATS, isa, fmt)
        for isa in DISTINCT
        for fmt in formats
        if isa is AVAILABLE[0] or fmt.name in ("F16", "Q6_K")
    ]
    return pytest.mark.parametrize(("isa", "fmt"), pairs, ids=lambda x: getattr(x, "name", None))


@pytest.mark.parametrize("isa", DISTINCT, ids=lambda isa: isa.name)
@pytest.mark.parametrize("how", ROUTINGS, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_routes_as_its_twin(compiled_for, isa: Isa, how: dict, with_bias: bool) -> None:
    rng = np.random.default_rng(1)
    for n_tokens, n_experts, n_used in [(1, 8, 2), (7, 16, 4), (5, 64, 6), (3, 128, 8)]:
        logits = rng.standard_normal((n_tokens, n_experts), np.float32) * 3
        bias, scales = rng.standard_normal((2, n_experts), np.float32) if with_bias else (None, None)
        chosen, weights = compiled.route(compiled_for(isa), logits, bias, n_used, scales=scales, **how)
        want_chosen, want_weights = twins.route(logits, bias, n_used, scales=scales, **how)
        np.testing.assert_array_equal(chosen, want_chosen)
        tolerance = WEIGHTS * how.get("scale", 1) * (1 if scales is None else np.abs(scales).max())
        np.testing.assert_allclose(weights, want_weights, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "logits"])
def test_numbers_that_are_none_still_choose_experts_that_there_are(compiled_for, scoring: str) -> None:
    """And what they count is no number either, so that the damage is seen."""
    for damage in (np.nan, np.inf, -np.inf):
        logits = np.random.default_rng(2).standard_normal((3, 8), np.float32)
        logits[0, 3] = damage
        logits[1] = damage
        how = {"scoring": scoring, "n_groups": 2, "n_groups_used": 1, "n_ranked": 2}
        chosen, weights = compiled.route(compiled_for(AVAILABLE[0]), logits, None, 2, **how)
        assert (chosen >= 0).all() and (chosen < 8).all()
        assert np.isfinite(weights[2]).all() and abs(weights[2].sum() - 1) < WEIGHTS
        if np.isnan(damage) or scoring != "sigmoid":
            assert np.isnan(weights[1]).all()


def test_equal_scores_go_to_the_first(compiled_for) -> None:
    chosen, weights = compiled.route(compiled_for(AVAILABLE[0]), np.zeros((2, 8), np.float32), None, 3)
    np.testing.assert_array_equal(chosen, [[0, 1, 2]] * 2)
    np.testing.assert_allclose(weights, 1 / 3, atol=WEIGHTS)


def test_pairs_sorted_by_expert(compiled_for) -> None:
    chosen = np.random.default_rng(3).integers(0, 6, (11, 3))
    order, ends = compiled.sort_experts(compiled_for(AVAILABLE[0]), chosen, 7)
    np.testing.assert_array_equal(order, np.argsort(chosen.ravel(), kind="stable"))
    np.testing.assert_array_equal(ends, np.cumsum(np.bincount(chosen.ravel(), minlength=7)))


def test_rows_that_name_no_expert_are_read_as_the_first(compiled_for) -> None:
    """Whoever binds other memory to a router's value cannot make a kernel read elsewhere."""
    for nonsense in (np.nan, np.inf, -1.0, 7.0, 1e30):
        order, ends = compiled.sort_experts(compiled_for(AVAILABLE[0]), np.full((2, 2), nonsense), 7)
        assert order.tolist() == [0, 1, 2, 3] and ends.tolist() == [4] * 7


def experts_of(n_tokens: int, n_experts: int, n_used: int, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.permutation(n_experts)[:n_used] for _ in range(n_tokens)])


@for_all(BLOCKS)
@pytest.mark.parametrize("by_pair", [False, True])
def test_rounded_inputs(compiled_for, isa: Isa, fmt: BlockFormat, by_pair: bool) -> None:
    rng, kernels = np.random.default_rng(4), compiled_for(isa)
    for index, (n_tokens, n_experts, n_used, n_rows) in enumerate(SHAPES):
        n_cols = max(fmt.block_size, (32, 96, 256)[index % 3])
        weights = random_weights(fmt, n_experts * n_rows, n_cols, rng).reshape(n_experts, n_rows, -1)
        chosen = experts_of(n_tokens, n_experts, n_used, rng)
        x = reference.quantize(rng.standard_normal((n_tokens * (n_used if by_pair else 1), n_cols), np.float32))
        found = compiled.experts(kernels, "experts_prefill", weights, fmt, x, chosen, 32)
        w = np.abs(fmt.dequantize(weights)).astype(np.float64)
        inputs = np.abs(x.dequantize())[np.arange(chosen.size) // (chosen.size // len(x.q))]
        magnitude = np.einsum("pc,prc->pr", inputs, w[chosen.ravel()]).reshape(found.shape)
        error = np.abs(found - twins.experts(weights, fmt, x, chosen))
        assert (error <= LINEAR * magnitude).all()  # of a row of zeros, nothing
        assert same_bits(compiled.experts(kernels, "experts_decode", weights, fmt, x, chosen), found)
        # The last token alone, and as one of few; and from tiles, which experts must fill, in a few formats: how these
        # are read is `linear_tiles`, which is tested in all.
        last = Quantized(*(part[-(n_used if by_pair else 1) :] for part in x))
        of_tiles = ("experts_tiles_prefill", "experts_tiles") if n_rows % 16 == 0 and fmt.name in FEW_FORMATS else ()
        for op in of_tiles:
            assert same_bits(compiled.experts(kernels, op, weights, fmt, x, chosen, 32), found), op
        for op in ("experts_prefill", "experts_decode", *of_tiles):
            assert same_bits(compiled.experts(kernels, op, weights, fmt, last, chosen[-1:]), found[-1:])


@functools.cache
def not_rounded(fmt: BlockFormat, by_pair: bool) -> list[tuple[np.ndarray, ...]]:
    """Weights, inputs, experts and what the twin, which takes long, makes of them: for every instruction set."""
    rng, found = np.random.default_rng(5), []
    for index, (n_tokens, n_experts, n_used, n_rows) in enumerate(SHAPES):
        n_cols = (3, 19, 64)[index % 3] if fmt in FLOATS else max(fmt.block_size, 64)
        weights = random_weights(fmt, n_experts * n_rows, n_cols, rng).reshape(n_experts, n_rows, -1)
        chosen = experts_of(n_tokens, n_experts, n_used, rng)
        x = rng.standard_normal((n_tokens * (n_used if by_pair else 1), n_cols), np.float32)
        found.append((weights, x, chosen, twins.experts_f32(weights, fmt, x, chosen)))
    return found


@for_all([*FLOATS, *BLOCKS])
@pytest.mark.parametrize("by_pair", [False, True])
def test_inputs_that_nobody_rounds(compiled_for, isa: Isa, fmt: BlockFormat, by_pair: bool) -> None:
    """To the bit as the twin has them."""
    for weights, x, chosen, want in not_rounded(fmt, by_pair):
        for op in ("experts_f32", *(["experts_f32_decode"] if fmt in FLOATS else [])):
            n = 16 if op.endswith("decode") else 32
            found = compiled.experts(compiled_for(isa), op, weights, fmt, x, chosen, n)
            assert same_bits(found, want), (op, *chosen.shape)


def test_weights_of_other_experts_are_not_touched(compiled_for) -> None:
    """They are NaN here, and would be seen in a sum."""
    fmt, rng = FORMATS["F32"], np.random.default_rng(6)
    weights = random_weights(fmt, 8 * 20, 32, rng).reshape(8, 20, -1)
    weights[[0, 2, 3, 4, 6, 7]] = 255
    for n_tokens in (1, 3, 30):
        chosen = np.array([rng.permutation([1, 5]) for _ in range(n_tokens)])
        x = rng.standard_normal((n_tokens, 32), np.float32)
        for op in ("experts_f32", "experts_f32_decode"):
            assert np.isfinite(compiled.experts(compiled_for(AVAILABLE[0]), op, weights, fmt, x, chosen)).all()


@pytest.mark.parametrize("isa", DISTINCT, ids=lambda isa: isa.name)
@pytest.mark.parametrize("in_place", [False, True])
def test_rows(compiled_for, isa: Isa, in_place: bool) -> None:
    rng, kernels = np.random.default_rng(7), compiled_for(isa)
    for n_tokens, n_experts, n_used, n in [(1, 3, 1, 5), (5, 8, 3, 33), (4, 4, 4, 64)]:
        x = rng.standard_normal((n_tokens, n_used * n), np.float32)
        bias = rng.standard_normal((n_experts, n), np.float32)
        chosen = experts_of(n_tokens, n_experts, n_used, rng)
        found = compiled.add_expert_bias(kernels, x, bias, chosen, in_place)
        np.testing.assert_array_equal(found, twins.add_expert_bias(x, bias, chosen))
        weights = rng.random((n_tokens, n_used), np.float32)
        np.testing.assert_allclose(compiled.sum_experts(kernels, x, weights), twins.sum_experts(x, weights), atol=1e-6)
        for width in (1, n_used * n):
            by = rng.standard_normal((n_tokens, width), np.float32) * 20
            np.testing.assert_allclose(compiled.gate(kernels, x, by, in_place), twins.gate(x, by), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("isa", DISTINCT, ids=lambda isa: isa.name)
def test_clamped_swiglu(compiled_for, isa: Isa) -> None:
    rng = np.random.default_rng(8)
    gate, up = (rng.standard_normal((3, 33), np.float32) * 8 for _ in range(2))
    found = compiled_for(isa).glu(gate, up, "clamped_swiglu")
    np.testing.assert_allclose(found, reference.glu(gate, up, "clamped_swiglu"), rtol=1e-5, atol=1e-6)
    gate[0, 0] = up[1, 1] = np.nan
    assert np.isnan(compiled_for(isa).glu(gate, up, "clamped_swiglu")).sum() == 2
