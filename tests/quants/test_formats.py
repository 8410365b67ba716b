"""Every block format against the `gguf` package, against theory, and at its edges."""

from __future__ import annotations

import subprocess
import sys

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgellm.errors import FormatError, UnsupportedError, UsageError
from edgellm.quants import FORMATS, by_ggml_type

BLOCKS = [f for f in FORMATS.values() if f.block_size > 1]
FLOATS = [f for f in FORMATS.values() if f.block_size == 1]

# Relative RMS error on normally distributed weights: ours and a little. That of llama.cpp is 1.02 (Q4_K) to 1.13
# (Q2_K, Q5_1) times as large, see docs/quantization.md.
LARGEST_ERROR = {
    "Q4_0": 0.0815,
    "Q4_1": 0.0697,
    "Q5_0": 0.0403,
    "Q5_1": 0.0333,
    "Q8_0": 0.0054,
    "Q2_K": 0.2637,
    "Q3_K": 0.1440,
    "Q4_K": 0.0704,
    "Q5_K": 0.0347,
    "Q6_K": 0.0169,
    "IQ4_NL": 0.0737,
    "IQ4_XS": 0.0743,
    "MXFP4": 0.1130,
}


def reference(raw, name):
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])


def relative_error(block_format, raw, x):
    return np.sqrt(np.square(block_format.dequantize(raw) - x).mean()) / x.std()


def assert_same_bits(got, expected):
    """Equal bit for bit, except that any NaN equals any other."""
    got, expected = (np.where(np.isnan(a), np.float32(np.nan), a).view(np.uint32) for a in (got, expected))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("block_format", FORMATS.values(), ids=str)
def test_sizes_and_numbers_are_those_of_ggml(block_format):
    kind = gguf.GGMLQuantizationType[block_format.name]
    assert gguf.GGML_QUANT_SIZES[kind] == (block_format.block_size, block_format.block_bytes)
    assert by_ggml_type(kind) is block_format
    assert block_format.bits_per_weight == 8 * block_format.block_bytes / block_format.block_size


@pytest.mark.parametrize("block_format", FORMATS.values(), ids=str)
def test_dequantize_of_any_bytes_equals_gguf(block_format):
    # Random bytes: all fields take all values, scales are subnormal, infinite and NaN as well.
    raw = np.random.default_rng(0).integers(0, 256, (32, 64 * block_format.block_bytes), np.uint8)
    weights = block_format.dequantize(raw)
    assert weights.dtype == np.float32 and weights.shape == (32, 64 * block_format.block_size)
    assert_same_bits(weights, reference(raw, block_format.name).reshape(weights.shape))


@pytest.mark.parametrize("block_format", BLOCKS, ids=str)
def test_quantization_error(block_format):
    x = np.random.default_rng(1).standard_normal((64, 2048), np.float32) * 0.05
    raw = block_format.quantize(x)
    assert raw.dtype == np.uint8 and raw.shape == (64, block_format.row_bytes(2048))
    assert relative_error(block_format, raw, x) < LARGEST_ERROR[block_format.name]


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
@pytest.mark.parametrize("spread", ["normal", "laplace", "offset", "sparse"])
def test_quantize_is_at_least_as_good_as_gguf(name, spread):
    random = np.random.default_rng(2)
    x = {
        "normal": lambda: random.standard_normal((16, 1024)),
        "laplace": lambda: random.laplace(size=(16, 1024)) * 1e-3,
        "offset": lambda: random.standard_normal((16, 1024)) * 0.1 + 1,
        "sparse": lambda: random.standard_normal((16, 1024)) * (random.random((16, 1024)) < 0.05),
    }[spread]().astype(np.float32)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8)
    ours = FORMATS[name].quantize(x)
    assert relative_error(FORMATS[name], ours, x) <= relative_error(FORMATS[name], theirs, x) * (1 + 1e-6)


@pytest.mark.parametrize("block_format", BLOCKS, ids=str)
def test_quantizing_again_adds_next_to_nothing(block_format):
    x = np.random.default_rng(3).standard_normal((8, 2048), np.float32)
    once = block_format.dequantize(block_format.quantize(x))
    twice = block_format.dequantize(block_format.quantize(once))
    if block_format.name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        # Their scales follow from the extreme weights, which survive but for rounding.
        np.testing.assert_allclose(twice, once, rtol=0, atol=1e-3 * np.abs(x).max())
    else:
        assert np.square(twice - once).mean() < 0.5 * np.square(once - x).mean()


finite = st.floats(-1000, 1000, width=32)


@settings(max_examples=60, deadline=None)
@given(x=hnp.arrays(np.float32, (1, 32), elements=finite))
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_mean_error_is_bounded_by_the_step(name, x):
    """Half a step, a whole one where symmetric formats lack the top level; and what float16 scales cost.

    Plain rounding keeps every weight so near; a fit gives one weight less than that, and all together no less.
    """
    top = np.abs(x).max()
    bound = {
        "Q4_0": top / 8,
        "Q5_0": top / 16,
        "Q4_1": np.ptp(x) / 15 / 2,
        "Q5_1": np.ptp(x) / 31 / 2,
        "Q8_0": top / 127 / 2,
    }[name]
    # A float16 scale is off by 2**-11 of itself or, when subnormal, by 2**-25; up to 127 steps multiply that.
    slack = 2 * top * 2.0**-11 + 127 * 2.0**-25
    error = FORMATS[name].dequantize(FORMATS[name].quantize(x)) - x
    assert np.sqrt(np.square(error).mean()) <= bound + slack


@settings(max_examples=40, deadline=None)
@given(x=hnp.arrays(np.float32, (1, 256), elements=st.floats(-60000, 60000, width=32)))
@pytest.mark.parametrize("block_format", BLOCKS, ids=str)
def test_any_finite_weights_give_finite_weights_of_their_size(block_format, x):
    y = block_format.dequantize(block_format.quantize(x))
    assert np.isfinite(y).all()
    # No level lies further out than twice the largest weight (MXFP4 and Q2_K are the coarsest).
    assert np.abs(y).max() <= 2 * np.abs(x).max() + 1e-3


@pytest.mark.parametrize("block_format", BLOCKS, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-30, 1e-8, -1e-30])
def test_zeros_and_tiny_weights_become_about_zero(block_format, value):
    y = block_format.dequantize(block_format.quantize(np.full((1, 256), value, np.float32)))
    assert np.abs(y).max() <= 1e-7


@pytest.mark.parametrize("block_format", BLOCKS, ids=str)
@pytest.mark.parametrize("value", [3.0, -3.0, 0.125])
def test_constant_rows_survive(block_format, value):
    y = block_format.dequantize(block_format.quantize(np.full((1, 512), value, np.float32)))
    # Group scales have four to eight bits, and a constant takes their extreme: all come close.
    np.testing.assert_allclose(y, value, rtol=0.04)


@pytest.mark.parametrize("block_format", BLOCKS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_block_formats_refuse_nan_and_infinity(block_format, bad):
    x = np.ones((3, 512), np.float32)
    x[1, 300] = bad
    with pytest.raises(FormatError, match="NaN or infinity"):
        block_format.quantize(x)


@pytest.mark.parametrize("block_format", [f for f in BLOCKS if f.name != "MXFP4"], ids=str)
def test_block_formats_refuse_weights_too_large_for_their_scale(block_format):
    x = np.zeros((1, 256), np.float32)
    x[0, 5] = 3e38
    x[0, 6] = -3e38
    with pytest.raises(FormatError, match="too large"):
        block_format.quantize(x)


def test_mxfp4_holds_the_whole_range_of_float32():
    x = np.full((1, 32), 3e38, np.float32)
    np.testing.assert_allclose(FORMATS["MXFP4"].dequantize(FORMATS["MXFP4"].quantize(x)), x, rtol=0.25)


@pytest.mark.parametrize("block_format", FLOATS, ids=str)
def test_floats_keep_nan_and_infinity_and_round_to_nearest_even(block_format):
    kind = gguf.GGMLQuantizationType[block_format.name]
    bits = np.random.default_rng(4).integers(0, 2**32, 4096, dtype=np.uint32)
    x = bits.view(np.float32)
    if block_format.name == "F16":
        x = np.where(np.abs(x) >= 65504, np.float32(np.inf), x)
    x = np.append(x, np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.00390625, 1.01171875]))
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(x, kind)
        ours = block_format.dequantize(block_format.quantize(x))
        assert_same_bits(ours, gguf.quants.dequantize(expected, kind))


def test_f16_refuses_a_weight_beyond_its_range():
    with pytest.raises(FormatError, match="1e\\+06 does not fit into F16"):
        FORMATS["F16"].quantize(np.float32([1.0, np.inf, -1e6]))


@pytest.mark.parametrize("block_format", FORMATS.values(), ids=str)
def test_shapes(block_format):
    n, n_bytes = block_format.block_size, block_format.block_bytes
    x = np.random.default_rng(5).standard_normal((2, 3, 4 * n), np.float32)
    raw = block_format.quantize(x)
    assert raw.shape == (2, 3, 4 * n_bytes)
    np.testing.assert_array_equal(block_format.quantize(x[1, 2]), raw[1, 2])
    np.testing.assert_array_equal(block_format.dequantize(raw[:, ::2]), block_format.dequantize(raw)[:, ::2])
    np.testing.assert_array_equal(block_format.quantize(x.astype(np.float64)), raw)
    assert block_format.quantize(x[:0]).shape == (0, 3, 4 * n_bytes)
    assert block_format.dequantize(raw[:0]).shape == (0, 3, 4 * n)
    assert block_format.row_bytes(7 * n) == 7 * n_bytes


@pytest.mark.parametrize("block_format", BLOCKS, ids=str)
def test_rows_that_do_not_fill_blocks_are_refused(block_format):
    with pytest.raises(FormatError, match=f"has 48 weights, not a multiple of {block_format.block_size}"):
        block_format.row_bytes(48)
    with pytest.raises(FormatError, match="weights, not a multiple"):
        block_format.quantize(np.zeros((2, 48), np.float32))
    with pytest.raises(FormatError, match="bytes, not a multiple"):
        block_format.dequantize(np.zeros((2, block_format.block_bytes + 1), np.uint8))


def test_other_arrays_are_refused():
    with pytest.raises(UsageError, match="rows of uint8, not float32"):
        FORMATS["Q8_0"].dequantize(np.zeros(34, np.float32))
    with pytest.raises(UsageError, match="single number"):
        FORMATS["Q8_0"].quantize(np.float32(1))


def test_types_that_are_missing_are_named():
    with pytest.raises(UnsupportedError, match="tensor type IQ2_XS is not supported"):
        by_ggml_type(17)
    with pytest.raises(FormatError, match="number 1000 does not exist"):
        by_ggml_type(1000)
    known = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    for number, name in known.items():
        if name not in FORMATS:
            with pytest.raises(UnsupportedError, match=f" {name} "):
                by_ggml_type(number)


def test_import_is_light():
    code = "import sys, edgellm.quants; print({'numba', 'llvmlite', 'gguf', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
