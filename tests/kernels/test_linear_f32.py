"""Linear layers on inputs that nobody has rounded: every format to the bit as its twin has it, whoever computes it."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from edgellm.kernels import reference
from edgellm.kernels.isa import GENERIC, Isa
from edgellm.kernels.records import F32_TILE_COLS
from edgellm.quants import FORMATS, BlockFormat

from .compiled import Compiled
from .conftest import AVAILABLE, DISTINCT, is_usual, thorough_unless
from .weights import BLOCKS, FLOATS, half_fields, random_weights

ALL = list(FORMATS.values())
SOME_FORMATS = ("F32", "F16", "BF16", "Q4_1", "Q6_K", "MXFP4")
# A sum of n numbers in float32, one after the other: each is rounded by 6e-8 of what was added so far.
LINEAR = 1e-5

# (n_rows, n_tokens, n_cols): parts of a tile and more than one, tokens alone and in any company, pieces of columns.
BLOCK_SHAPES = [(1, 1, 512), (7, 3, 256), (17, 9, 768), (40, 16, 256), (70, 2, 256), (33, 35, 512)]
FLOAT_SHAPES = [(1, 1, 300), (7, 3, 1), (17, 9, 37), (40, 16, 256), (70, 2, 7), (33, 35, 8), (3, 4, 519)]


def for_all(isas: list[Isa], formats: list[BlockFormat]) -> pytest.MarkDecorator:
    """All formats where registers are wide, and some on plain vectors: a format is unpacked by the same words there."""
    pairs = [
        thorough_unless(is_usual(isa, fmt), isa, fmt)
        for isa in isas
        for fmt in formats
        if isa is not GENERIC or fmt.name in SOME_FORMATS
    ]
    return pytest.mark.parametrize(("isa", "fmt"), pairs, ids=lambda x: getattr(x, "name", None))


def ops(fmt: BlockFormat) -> list[str]:
    return ["linear_f32", "linear_f32_decode"] if fmt in FLOATS else ["linear_f32"]


@functools.cache
def cases(fmt: BlockFormat) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Weights, inputs of any size, and what the twin makes of them."""
    rng = np.random.default_rng(11)
    found = []
    for n_rows, n_tokens, n_cols in FLOAT_SHAPES if fmt in FLOATS else BLOCK_SHAPES:
        weights = random_weights(fmt, n_rows, n_cols, rng)
        x = rng.standard_normal((n_tokens, n_cols), np.float32)
        x[:, :: max(1, n_cols // 5)] *= 1e4  # so that many a sum is rounded at its last places
        found.append((weights, x, reference.linear_f32(weights, fmt, x)))
    return found


@for_all(DISTINCT, ALL)
def test_as_its_twin_to_the_bit(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    for weights, x, want in cases(fmt):
        for op in ops(fmt):
            np.testing.assert_array_equal(compiled_for(isa).linear_f32(weights, fmt, x, op), want, f"{op} {want.shape}")


@pytest.mark.parametrize("fmt", ALL, ids=repr)
def test_the_twin_is_a_product_of_matrices(fmt: BlockFormat) -> None:
    for weights, x, found in cases(fmt):
        w = fmt.dequantize(weights).astype(np.float64)
        magnitude = np.abs(x) @ np.abs(w).T
        assert (np.abs(found - x @ w.T) / magnitude).max() < LINEAR


@for_all(DISTINCT, ALL)
def test_weights_are_dequantized_to_the_bit(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    """Unit vectors read them out: every other product is 0."""
    n_cols = 256
    assert n_cols >= fmt.block_size
    weights = random_weights(fmt, 17, n_cols, np.random.default_rng(12))
    found = compiled_for(isa).linear_f32(weights, fmt, np.eye(n_cols, dtype=np.float32)).T
    expected = fmt.dequantize(weights) + np.float32(0)  # a sum has no -0.0
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@for_all(DISTINCT, ALL)
def test_the_same_bits_in_any_company(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    """A token alone, among others, beside whatever number of them; a row alone, or among others."""
    compiled: Compiled = compiled_for(isa)
    rng = np.random.default_rng(13)
    weights = random_weights(fmt, 50, 512, rng)
    x = rng.standard_normal((18, 512), np.float32)
    whole = compiled.linear_f32(weights, fmt, x)
    for op in ops(fmt):
        for first, end in ((0, 1), (3, 5), (4, 7), (2, 18), (17, 18)):
            np.testing.assert_array_equal(compiled.linear_f32(weights, fmt, x[first:end], op), whole[first:end])
        for first, end in ((0, 1), (20, 36), (49, 50)):
            np.testing.assert_array_equal(compiled.linear_f32(weights[first:end], fmt, x, op), whole[:, first:end])


@pytest.mark.parametrize("fmt", ALL, ids=repr)
def test_no_tokens_are_no_work(compiled_for, fmt: BlockFormat) -> None:
    weights = random_weights(fmt, 17, 256, np.random.default_rng(14))
    for op in ops(fmt):
        assert compiled_for(AVAILABLE[0]).linear_f32(weights, fmt, np.zeros((0, 256), np.float32), op).shape == (0, 17)


@for_all(DISTINCT, [fmt for fmt in ALL if fmt.name != "MXFP4"])  # whose scales are always finite
def test_what_is_not_finite_stays_in_its_row_and_token(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    rng = np.random.default_rng(15)
    weights = random_weights(fmt, 17, 2 * F32_TILE_COLS, rng)
    x = rng.standard_normal((4, 2 * F32_TILE_COLS), np.float32)
    bad = {np.inf: 3, -np.inf: 8, np.nan: 16}
    for value, row in bad.items():
        if fmt in BLOCKS:
            fields = half_fields(fmt)
            weights.reshape(-1).view(fmt.layout).reshape(17, -1)[fields[row % len(fields)]][row, -1] = value
        else:
            weights[row, -fmt.block_bytes :] = fmt.quantize(np.float32([value]))
    x[2, 1] = np.inf
    spoilt = np.isin(np.arange(17), list(bad.values())) | (np.arange(4) == 2)[:, None]
    for op in ops(fmt):
        np.testing.assert_array_equal(np.isfinite(compiled_for(isa).linear_f32(weights, fmt, x, op)), ~spoilt)
