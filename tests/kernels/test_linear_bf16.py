"""Linear layers in bfloat16, both ways, on a CPU with AMX."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.kernels import reference_products as reference
from edgellm.kernels.gradient_records import AMX_COLS, AMX_SUM_ROWS
from edgellm.kernels.isa import AVX512
from edgellm.kernels.isa.amx import has_amx
from edgellm.quants import FORMATS, BlockFormat

from .compiled import Compiled
from .conftest import COMMON, thorough_unless
from .weights import BLOCKS, random_weights

pytestmark = pytest.mark.skipif(not has_amx(AVX512), reason="this CPU has no AMX, or a process may not use it")

# A sum of n numbers in float32, one after the other: each is rounded by 6e-8 of what was added so far.
SUM = 1e-5
# What is in a block is found as in `linear_f32`, which tries all formats.
FORMATS_TRIED = [thorough_unless(fmt.name in COMMON, fmt) for fmt in BLOCKS]
SHAPES = [(1, 1, 256), (7, 3, 256), (40, 16, 512), (70, 33, 256), (32, 80, 768)]  # n_rows, n_tokens, n_cols


def inputs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape, np.float32) * (10.0 ** rng.integers(-3, 4, shape[-1])).astype(np.float32)
    return reference.nearest_bf16(x)


def check(found: np.ndarray, want: np.ndarray, magnitude: np.ndarray) -> None:
    assert found.shape == want.shape
    assert (np.abs(found - want) <= SUM * magnitude).all()


@pytest.fixture(scope="module")
def compiled(compiled_for) -> Compiled:
    return compiled_for(AVX512)


@pytest.mark.parametrize("fmt", FORMATS_TRIED, ids=repr)
def test_as_its_twin(compiled: Compiled, fmt: BlockFormat) -> None:
    rng = np.random.default_rng(31)
    for n_rows, n_tokens, n_cols in [*SHAPES, (20, 5, AMX_COLS + 256)]:
        weights, x = random_weights(fmt, n_rows, n_cols, rng), inputs(rng, n_tokens, n_cols)
        want = reference.linear_bf16(weights, fmt, x)
        w = np.abs(reference.nearest_bf16(fmt.dequantize(weights)))
        check(compiled.linear_bf16(weights, fmt, x), want, np.abs(x) @ w.T)


@pytest.mark.parametrize("fmt", FORMATS_TRIED, ids=repr)
def test_transposed_as_its_twin(compiled: Compiled, fmt: BlockFormat) -> None:
    rng = np.random.default_rng(32)
    for n_rows, n_tokens, n_cols in [(32, 1, 256), (64, 17, 512), (AMX_SUM_ROWS + 96, 40, 256)]:
        weights, x = random_weights(fmt, n_rows, n_cols, rng), inputs(rng, n_tokens, n_rows)
        want = reference.linear_bf16_transposed(weights, fmt, x)
        w = np.abs(reference.nearest_bf16(fmt.dequantize(weights)))
        check(compiled.linear_bf16_transposed(weights, fmt, x), want, np.abs(x) @ w)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K"])
def test_the_same_bits_in_any_company(compiled: Compiled, name: str) -> None:
    """A token alone, among others, beside whatever number of them."""
    rng, fmt = np.random.default_rng(33), FORMATS[name]
    weights, x = random_weights(fmt, 64, 512, rng), inputs(rng, 50, 512)
    y = inputs(rng, 50, 64)
    whole, back = compiled.linear_bf16(weights, fmt, x), compiled.linear_bf16_transposed(weights, fmt, y)
    for first, end in [(0, 1), (3, 20), (17, 50), (49, 50)]:
        some = slice(first, end)
        np.testing.assert_array_equal(compiled.linear_bf16(weights, fmt, x[some]), whole[some])
        np.testing.assert_array_equal(compiled.linear_bf16_transposed(weights, fmt, y[some]), back[some])
    np.testing.assert_array_equal(compiled.linear_bf16(weights[5:21], fmt, x), whole[:, 5:21])
