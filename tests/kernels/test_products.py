"""What goes backwards through linear layers: every number to the bit as its twin has it, whoever computes it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.kernels import reference_products as reference
from edgellm.kernels.gradient_records import OUTER_COLS, OUTER_ROWS, OUTER_TOKENS
from edgellm.kernels.gradient_records import TRANSPOSED_ROWS as ROWS
from edgellm.kernels.gradient_records import TRANSPOSED_TOKENS as TOKENS
from edgellm.kernels.isa import Isa
from edgellm.kernels.records import F32_TILE_COLS
from edgellm.quants import FORMATS, BlockFormat

from .compiled import Compiled
from .conftest import DISTINCT
from .test_linear_f32 import ALL, LINEAR, for_all
from .weights import BLOCKS, FLOATS, half_fields, random_weights

# (n_rows, n_tokens, n_cols): rows and tokens alone and in any company, parts of a tile and more than one, every way to
# fill the last registers of columns.
BLOCK_SHAPES = [(1, 1, 256), (8, 3, 512), (ROWS + 7, 9, 256), (5, TOKENS + 2, 512), (2 * ROWS, 1, 768)]
FLOAT_SHAPES = [(1, 1, 1), (8, 3, 300), (ROWS + 7, 9, 37), (5, TOKENS + 2, 96), (2 * ROWS, 2, 519), (3, 6, 16)]


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of very different sizes, so that many a sum is rounded at its last places."""
    return rng.standard_normal(shape, np.float32) * (10.0 ** rng.integers(-3, 4, shape[-1])).astype(np.float32)


@functools.cache
def cases(fmt: BlockFormat) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Weights, inputs, and what the twin makes of them."""
    rng = np.random.default_rng(21)
    found = []
    shapes = FLOAT_SHAPES if fmt in FLOATS else BLOCK_SHAPES
    if fmt.block_size == 32:
        shapes = [*shapes, (3, 4, 32), (9, 2, F32_TILE_COLS + 96)]
    for n_rows, n_tokens, n_cols in shapes:
        weights, x = random_weights(fmt, n_rows, n_cols, rng), normal(rng, n_tokens, n_rows)
        found.append((weights, x, reference.linear_transposed(weights, fmt, x)))
    return found


@for_all(DISTINCT, ALL)
def test_linear_transposed_as_its_twin_to_the_bit(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    for weights, x, want in cases(fmt):
        found = compiled_for(isa).linear_transposed(weights, fmt, x)
        np.testing.assert_array_equal(found, want, f"{weights.shape} {want.shape}")


@pytest.mark.parametrize("fmt", ALL, ids=repr)
def test_the_twin_is_the_product_with_the_transpose(fmt: BlockFormat) -> None:
    for weights, x, found in cases(fmt):
        w = fmt.dequantize(weights).astype(np.float64)
        np.testing.assert_array_less(np.abs(found - x @ w), LINEAR * (np.abs(x) @ np.abs(w)) + 1e-30)


@for_all(DISTINCT, ALL)
def test_weights_are_dequantized_to_the_bit(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    """Unit vectors read them out: every other product is 0."""
    weights = random_weights(fmt, 17, 512, np.random.default_rng(22))
    found = compiled_for(isa).linear_transposed(weights, fmt, np.eye(17, dtype=np.float32))
    expected = fmt.dequantize(weights) + np.float32(0)  # a sum has no -0.0
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@for_all(DISTINCT, ALL)
def test_the_same_bits_in_any_company(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    """A token alone, among others, beside whatever number of them; columns alone, or among others."""
    compiled: Compiled = compiled_for(isa)
    rng = np.random.default_rng(23)
    weights, x = random_weights(fmt, ROWS + 3, 512, rng), normal(rng, 18, ROWS + 3)
    whole = compiled.linear_transposed(weights, fmt, x)
    for first, end in ((0, 1), (3, 5), (4, 7), (2, 18), (17, 18)):
        np.testing.assert_array_equal(compiled.linear_transposed(weights, fmt, x[first:end]), whole[first:end])
    for first, end in ((0, 1), (1, 2)):
        some = slice(256 * first, 256 * end)
        part = weights[
            :, some.start // fmt.block_size * fmt.block_bytes : some.stop // fmt.block_size * fmt.block_bytes
        ]
        np.testing.assert_array_equal(compiled.linear_transposed(np.ascontiguousarray(part), fmt, x), whole[:, some])


@pytest.mark.parametrize("name", ["F32", "Q4_1", "Q6_K"])
def test_no_tokens_are_no_work(compiled: Compiled, name: str) -> None:
    weights = random_weights(FORMATS[name], 17, 256, np.random.default_rng(24))
    assert compiled.linear_transposed(weights, FORMATS[name], np.zeros((0, 17), np.float32)).shape == (0, 256)
    g = np.ones((3, 5), np.float32)
    np.testing.assert_array_equal(compiled.outer_sum(g[:0, [0] * 3], g[:0], g), g)


@for_all(DISTINCT, [fmt for fmt in ALL if fmt.name != "MXFP4"])  # whose scales are always finite
def test_what_is_not_finite_stays_in_its_columns_and_token(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    rng = np.random.default_rng(25)
    weights, x = random_weights(fmt, 9, 2 * F32_TILE_COLS, rng), normal(rng, 4, 9)
    if fmt in BLOCKS:
        for row, field in enumerate(half_fields(fmt)):
            weights.reshape(-1).view(fmt.layout).reshape(9, -1)[field][row, -1] = np.inf
    else:
        weights[4, -fmt.block_bytes :] = fmt.quantize(np.float32([np.nan]))
    x[2, 1] = np.inf
    found = compiled_for(isa).linear_transposed(weights, fmt, x)
    spoilt = (np.arange(found.shape[1]) >= found.shape[1] - fmt.block_size) | (np.arange(4) == 2)[:, None]
    np.testing.assert_array_equal(np.isfinite(found), ~spoilt)


# (n_rows, n_cols, n_tokens): ranks beside widths, either way round; tiles and parts of them.
OUTER_SHAPES = [
    *((1, 1, 1), (8, 576, 70), (576, 8, 70), (16, 3, 5), (3, 17, 2), (7, 300, OUTER_TOKENS)),
    *((OUTER_ROWS + 5, OUTER_COLS + 33, 2 * OUTER_TOKENS + 1), (2 * OUTER_ROWS, 2 * OUTER_COLS, 3)),
]


@pytest.mark.parametrize(("n_rows", "n_cols", "n_tokens"), OUTER_SHAPES)
def test_outer_sum_as_its_twin_to_the_bit(compiled: Compiled, n_rows: int, n_cols: int, n_tokens: int) -> None:
    rng = np.random.default_rng(26)
    a, b, g = normal(rng, n_tokens, n_rows), normal(rng, n_tokens, n_cols), normal(rng, n_rows, n_cols)
    want = reference.outer_sum(a, b, g)
    for gap in (0, 7):
        np.testing.assert_array_equal(compiled.outer_sum(a, b, g, gap), want)
    np.testing.assert_array_equal(compiled.outer_sum(a, b, g, scale=-0.3), reference.outer_sum(a, b, g, -0.3))
    magnitude = np.abs(g) + np.abs(a).T.astype(np.float64) @ np.abs(b)
    assert (np.abs(want - (g + a.T.astype(np.float64) @ b)) / magnitude).max() < LINEAR


def test_outer_sum_in_two_batches_is_that_of_both(compiled: Compiled) -> None:
    rng = np.random.default_rng(27)
    a, b, g = normal(rng, 100, 20), normal(rng, 100, 50), np.zeros((20, 50), np.float32)
    first = compiled.outer_sum(a[:37], b[:37], g)
    np.testing.assert_array_equal(compiled.outer_sum(a[37:], b[37:], first), compiled.outer_sum(a, b, g))


def test_outer_sum_of_what_is_not_finite(compiled: Compiled) -> None:
    a, b = np.ones((3, 20), np.float32), np.ones((3, 70), np.float32)
    a[1, 7], b[2, 66] = np.nan, np.inf
    spoilt = (np.arange(20) == 7)[:, None] | (np.arange(70) == 66)
    np.testing.assert_array_equal(np.isfinite(compiled.outer_sum(a, b, np.zeros((20, 70), np.float32))), ~spoilt)


@settings(deadline=None, max_examples=30)
@given(n_rows=st.integers(1, 130), n_cols=st.integers(1, 330), n_tokens=st.integers(0, 140), gap=st.integers(0, 20))
def test_outer_sum_of_any_shape(compiled_for, n_rows: int, n_cols: int, n_tokens: int, gap: int) -> None:
    rng = np.random.default_rng(28)
    a, b, g = (
        rng.integers(-9, 10, shape).astype(np.float32)
        for shape in ((n_tokens, n_rows), (n_tokens, n_cols), (n_rows, n_cols))
    )
    for isa in DISTINCT:
        np.testing.assert_array_equal(compiled_for(isa).outer_sum(a, b, g, gap), g + a.T @ b)  # integers: exact


@settings(deadline=None, max_examples=30)
@given(n_rows=st.integers(1, 140), n_cols=st.integers(1, 530), n_tokens=st.integers(0, 140))
def test_linear_transposed_of_any_shape(compiled_for, n_rows: int, n_cols: int, n_tokens: int) -> None:
    rng, fmt = np.random.default_rng(29), FORMATS["BF16"]
    w, x = (rng.integers(-9, 10, shape).astype(np.float32) for shape in ((n_rows, n_cols), (n_tokens, n_rows)))
    for isa in DISTINCT:
        np.testing.assert_array_equal(compiled_for(isa).linear_transposed(fmt.quantize(w), fmt, x), x @ w)
