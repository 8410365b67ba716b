"""Linear layers on rounded inputs: decode and prefill of every block format against their twin, and to the bit
against each other."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.kernels import reference
from edgellm.kernels.isa import AVX2, AVX512, Isa
from edgellm.kernels.isa.amx import has_amx
from edgellm.kernels.reference import Quantized
from edgellm.quants import FORMATS, BlockFormat

from .compiled import Compiled
from .conftest import AVAILABLE, SELDOM, is_usual, thorough_unless
from .weights import BLOCKS, half_fields, random_weights

# Kernels add up to 2 x 48 terms in float32, each rounded by 6e-8 of what was added so far, which biases
# (-scale * zero) can make several times the sum of magnitudes that errors are measured by.
LINEAR = 6e-6

OPS = ("linear_decode", "linear_prefill", "linear_tiles", "linear_tiles_prefill")
AMX_OPS = ("linear_amx", "linear_tiles_amx")  # where a CPU can
FEW_FORMATS = ("Q4_1", "Q6_K")
TWO_PLANE_FORMATS = ("Q4_1", "Q6_K", "Q8_0")  # scales for 32 and for 16 weights, and the largest bytes
# Of tokens, all that kernels for some at once leave over: 1, 2, 4, 8.
N_ROWS, N_TOKENS, N_COLS = (1, 7, 16, 17, 40), (1, 3, 4, 10, 14, 33), (32, 96, 256, 768)


def for_all(isas: list[Isa], formats: list[BlockFormat]) -> pytest.MarkDecorator:
    """All formats on the instruction sets that most CPUs have, and a few on the others."""
    pairs = [
        thorough_unless(is_usual(isa, fmt), isa, fmt)
        for isa in isas
        for fmt in formats
        if isa in (AVX512, AVX2) or fmt.name in FEW_FORMATS
    ]
    return pytest.mark.parametrize(("isa", "fmt"), pairs, ids=lambda x: getattr(x, "name", None))


def ops_of(isa: Isa, fmt: BlockFormat) -> tuple[str, ...]:
    """Tiles of all formats on the best instruction set, and of a few on the others: their words are found alike.

    Of those that AVX2 loops over (`BlockFormat.n_alike`), Q6_K has a zero point, and Q5_K minima.
    """
    with_tiles = isa is AVAILABLE[0] or fmt.name in FEW_FORMATS or (isa is AVX2 and fmt.name == "Q5_K")
    usual = OPS if with_tiles and not are_slow_to_compile(isa, fmt) else OPS[:2]
    return usual + AMX_OPS if has_amx(isa) and fmt.scale_group == 32 else usual


def are_slow_to_compile(isa: Isa, fmt: BlockFormat) -> bool:
    """Whether tiles are."""
    return isa in SELDOM and fmt.name == "Q6_K"


def for_all_with_ops(isas: list[Isa], formats: list[BlockFormat]) -> pytest.MarkDecorator:
    """As `for_all`, with `ops_of` them; tiles that are slow to compile apart."""
    pairs = for_all(isas, formats).args[1]
    usual = [pytest.param(*pair.values, ops_of(*pair.values), marks=pair.marks) for pair in pairs]
    slow = [thorough_unless(False, *pair.values, OPS[2:]) for pair in pairs if are_slow_to_compile(*pair.values)]
    return pytest.mark.parametrize(
        ("isa", "fmt", "ops"), usual + slow, ids=lambda x: getattr(x, "name", None) or f"{len(x)} ops"
    )


everywhere = for_all(AVAILABLE, BLOCKS)
everywhere_by_all = for_all_with_ops(AVAILABLE, BLOCKS)
everywhere_in_two_planes = for_all_with_ops(AVAILABLE, [FORMATS[name] for name in TWO_PLANE_FORMATS])


def activations(n_tokens: int, n_cols: int, rng: np.random.Generator, n_planes: int = 1) -> Quantized:
    return reference.quantize(rng.standard_normal((n_tokens, n_cols), np.float32), n_planes)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def shapes(fmt: BlockFormat) -> list[tuple[int, int, int]]:
    """Every number of rows, tokens and columns, if not with each other."""
    widths = [n for n in N_COLS if n % fmt.block_size == 0]
    return [
        (n_rows, n_tokens, widths[(i + j) % len(widths)])
        for i, n_rows in enumerate(N_ROWS)
        for j, n_tokens in enumerate(N_TOKENS)
    ]


@everywhere
def test_agrees_with_its_twin(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    """And so do all others, which give the same bits, as the next test says."""
    rng = np.random.default_rng(11)
    for n_rows, n_tokens, n_cols in shapes(fmt):
        weights = random_weights(fmt, n_rows, n_cols, rng)
        x = activations(n_tokens, n_cols, rng)
        got = compiled_for(isa).linear(weights, fmt, x)
        magnitude = np.abs(x.dequantize()) @ np.abs(fmt.dequantize(weights)).T
        error = np.abs(got - reference.linear(weights, fmt, x)) / magnitude
        assert error.max() < LINEAR, (n_rows, n_tokens, n_cols)


@everywhere_by_all
def test_all_kernels_give_the_same_bits(compiled_for, isa: Isa, fmt: BlockFormat, ops: tuple[str, ...]) -> None:
    """Whatever a token's company, whatever the layout: a prompt has the same logits in one batch or token by token."""
    rng = np.random.default_rng(12)
    compiled: Compiled = compiled_for(isa)
    for n_rows, n_tokens, n_cols in shapes(fmt):
        weights = random_weights(fmt, n_rows, n_cols, rng)
        x = activations(n_tokens, n_cols, rng)
        together = compiled.linear(weights, fmt, x, "linear_prefill")
        for op in ops:
            assert same_bits(compiled.linear(weights, fmt, x, op), together), op
        last = Quantized(*(part[-1:] for part in x))
        for op in ops:
            assert same_bits(compiled.linear(weights, fmt, last, op), together[-1:])


@everywhere_by_all
def test_the_largest_products_have_room(compiled_for, isa: Isa, fmt: BlockFormat, ops: tuple[str, ...]) -> None:
    """Weights with all bits set or none, by inputs that are all as large as int8 takes them."""
    rng = np.random.default_rng(17)
    n_cols = 256
    signs = np.stack([np.ones(n_cols), -np.ones(n_cols), np.tile([1, -1], n_cols // 2)]).astype(np.float32)
    x = reference.quantize(signs)
    for fill in (0x00, 0xFF):
        weights = random_weights(fmt, 17, n_cols, rng)
        blocks = weights.view(fmt.layout)
        for name, (field, *_) in (fmt.layout.fields or {}).items():
            if field.base.kind != "f" and not (fmt.name == "MXFP4" and name == "e"):  # whose exponents could be any
                blocks[name] = np.array(fill, np.uint8).astype(field.base) if field.base.itemsize == 1 else fill * 257
        magnitude = np.abs(x.dequantize()) @ np.abs(fmt.dequantize(weights)).T
        for op in ops:
            error = np.abs(compiled_for(isa).linear(weights, fmt, x, op) - reference.linear(weights, fmt, x))
            assert (error <= LINEAR * magnitude).all(), (op, fill)


@for_all(AVAILABLE[1:], BLOCKS)
def test_every_instruction_set_gives_the_same_bits(compiled_for, isa: Isa, fmt: BlockFormat) -> None:
    rng = np.random.default_rng(13)
    for n_rows, n_tokens, n_cols in shapes(fmt)[:7]:
        weights = random_weights(fmt, n_rows, n_cols, rng)
        x = activations(n_tokens, n_cols, rng)
        here, there = (compiled_for(one).linear(weights, fmt, x) for one in (isa, AVAILABLE[0]))
        assert same_bits(here, there), (n_rows, n_tokens, n_cols)


@everywhere_in_two_planes
def test_with_two_planes_they_agree_with_their_twin_and_each_other(
    compiled_for, isa: Isa, fmt: BlockFormat, ops: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(16)
    for n_rows, n_tokens, n_cols in shapes(fmt):
        weights = random_weights(fmt, n_rows, n_cols, rng)
        x = activations(n_tokens, n_cols, rng, n_planes=2)
        decode, *others = (compiled_for(isa).linear(weights, fmt, x, op, n_planes=2) for op in ops)
        magnitude = np.abs(x.dequantize()) @ np.abs(fmt.dequantize(weights)).T
        error = np.abs(decode - reference.linear(weights, fmt, x)) / magnitude
        assert error.max() < LINEAR, (n_rows, n_tokens, n_cols)
        assert all(same_bits(decode, other) for other in others), (n_rows, n_tokens, n_cols)
        if isa is not AVAILABLE[0]:
            assert same_bits(decode, compiled_for(AVAILABLE[0]).linear(weights, fmt, x, OPS[0], n_planes=2))


@everywhere_by_all
def test_no_tokens_are_no_work(compiled_for, isa: Isa, fmt: BlockFormat, ops: tuple[str, ...]) -> None:
    rng = np.random.default_rng(14)
    x = activations(0, 256, rng)
    for op in ops:
        assert compiled_for(isa).linear(random_weights(fmt, 17, 256, rng), fmt, x, op).shape == (0, 17)


@for_all_with_ops(AVAILABLE, [fmt for fmt in BLOCKS if fmt.name != "MXFP4"])  # whose scales are always finite
def test_what_is_not_finite_stays_in_its_row(compiled_for, isa: Isa, fmt: BlockFormat, ops: tuple[str, ...]) -> None:
    """A scale that is infinite or NaN spoils the rows that have it, all of them and no others."""
    rng = np.random.default_rng(15)
    weights = random_weights(fmt, 17, 512, rng)
    bad = {np.inf: 3, -np.inf: 8, np.nan: 16}
    fields = half_fields(fmt)
    for value, row in bad.items():
        weights.reshape(-1).view(fmt.layout).reshape(17, -1)[fields[row % len(fields)]][row, -1] = value
    x = activations(4, 512, rng)
    want = reference.linear(weights, fmt, x)
    spoilt = np.isin(np.arange(17), list(bad.values()))
    np.testing.assert_array_equal(np.isfinite(want), np.broadcast_to(~spoilt, want.shape))
    for op in ops:
        np.testing.assert_array_equal(np.isfinite(compiled_for(isa).linear(weights, fmt, x, op)), np.isfinite(want))


@for_all_with_ops(AVAILABLE, [FORMATS[name] for name in FEW_FORMATS])
def test_extreme_weights_and_activations_do_not_overflow_their_integers(
    compiled_for, isa: Isa, fmt: BlockFormat, ops: tuple[str, ...]
) -> None:
    """Every u at its largest and every activation at 127 or -127: the largest sums of products there are."""
    weights = np.full((8, fmt.row_bytes(256)), 0xFF, np.uint8)
    for field in half_fields(fmt):
        weights.reshape(-1).view(fmt.layout)[field] = 1
    x = reference.quantize(np.repeat(np.float32([[1], [-1]]), 256, axis=1))
    for op in ops:
        got = compiled_for(isa).linear(weights, fmt, x, op)
        np.testing.assert_allclose(got, reference.linear(weights, fmt, x), rtol=1e-5, err_msg=op)


@pytest.mark.parametrize("isa", [isa for isa in AVAILABLE if isa in (AVX512, AVX2)], ids=lambda isa: isa.name)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_bytes_meet_the_largest_activations(compiled_for, isa: Isa, op: str, sign: int) -> None:
    """Q8_0 uses all 256 values of a byte: AVX2's 16-bit pairs of products would overflow if it took them whole."""
    fmt = FORMATS["Q8_0"]
    for byte in (127, -128, -1, 0):
        blocks = np.zeros(4 * 3, fmt.layout)
        blocks["d"], blocks["qs"] = 1, byte
        weights = blocks.view(np.uint8).reshape(4, -1)
        x = reference.quantize(np.full((2, 96), sign, np.float32))
        np.testing.assert_allclose(
            compiled_for(isa).linear(weights, fmt, x, op), reference.linear(weights, fmt, x), rtol=1e-5, atol=1e-3
        )
