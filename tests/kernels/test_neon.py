"""NEON kernels, run by an emulator where this machine is no ARM: against their twins, and to the bit as x86 has it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgellm.kernels.fit import CompiledFit
from edgellm.kernels.isa import NEON
from edgellm.kernels.kv_types import F16_CACHE, F32_CACHE, CacheType
from edgellm.quants import FORMATS

from . import (
    test_attention,
    test_attention_backward,
    test_encoder,
    test_experts,
    test_fit,
    test_kv_types,
    test_linear,
    test_linear_f32,
    test_products,
    test_recurrent,
    test_rows,
)
from .arm import FORMATS_OF_TILES, EmulatedStore
from .compiled import Compiled
from .compiled_encoder import CompiledEncoder
from .conftest import AVAILABLE, COMMON, thorough_unless
from .weights import BLOCKS, random_weights

pytest.importorskip("unicorn", reason="the emulator is not installed")
pytestmark = [
    pytest.mark.skipif(NEON in AVAILABLE, reason="all other tests run NEON here"),
    pytest.mark.skipif(sys.platform == "win32", reason="memory is mapped as POSIX systems do"),
]


@pytest.fixture(scope="module")
def neon() -> Compiled:
    emulated = Compiled(NEON)
    emulated.store = EmulatedStore()
    return emulated


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


IN_PLANES = [(fmt, 1) for fmt in BLOCKS] + [(FORMATS[name], 2) for name in test_linear.TWO_PLANE_FORMATS]
# Tiles differ from the file in how their words are found, which few formats are enough for: emulating takes long.
LINEARS = [
    thorough_unless(fmt.name in COMMON and (op != "linear_tiles" or fmt.name != "Q6_K"), op, fmt, n_planes)
    for op in test_linear.OPS
    for fmt, n_planes in IN_PLANES
    if "tiles" not in op or fmt.name in FORMATS_OF_TILES[n_planes]
]


@pytest.mark.parametrize(("op", "fmt", "n_planes"), LINEARS, ids=str)
def test_linear_gives_the_bits_of_x86(neon: Compiled, compiled_for, op: str, fmt, n_planes: int, rng) -> None:
    """Which its twin and the other kernels have been compared with."""
    for n_rows, n_tokens, n_cols in ((17, 3, 256), (40, 9, 512), (1, 1, 256)):
        weights = random_weights(fmt, n_rows, n_cols, rng)
        x = test_linear.activations(n_tokens, n_cols, rng, n_planes)
        here, there = (side.linear(weights, fmt, x, op, n_planes) for side in (neon, compiled_for(AVAILABLE[0])))
        assert test_linear.same_bits(here, there)


@test_linear_f32.for_all([NEON], test_linear_f32.ALL)
def test_linear_on_inputs_as_they_are(neon: Compiled, isa, fmt) -> None:
    test_linear_f32.test_as_its_twin_to_the_bit(lambda isa: neon, isa, fmt)
    test_linear_f32.test_weights_are_dequantized_to_the_bit(lambda isa: neon, isa, fmt)


@test_linear_f32.for_all([NEON], [FORMATS[name] for name in ("F32", "F16", "Q4_1", "Q4_K")])
def test_linear_transposed(neon: Compiled, isa, fmt) -> None:
    test_products.test_linear_transposed_as_its_twin_to_the_bit(lambda isa: neon, isa, fmt)


@pytest.mark.parametrize(("n_rows", "n_cols", "n_tokens"), [(1, 1, 1), (8, 100, 70), (100, 8, 3)])
def test_outer_sum(neon: Compiled, n_rows: int, n_cols: int, n_tokens: int) -> None:
    test_products.test_outer_sum_as_its_twin_to_the_bit(neon, n_rows, n_cols, n_tokens)


@pytest.mark.parametrize("fmt", [thorough_unless(f.name in COMMON, f) for f in FORMATS.values()], ids=repr)
def test_embed(neon: Compiled, fmt, rng) -> None:
    test_rows.test_embed(lambda isa: neon, NEON, fmt, rng)


@pytest.mark.parametrize("width", test_rows.WIDTHS)
def test_rows_of_activations(neon: Compiled, rng, width: int) -> None:
    for n_tokens in (0, 3):
        test_rows.test_add_and_select_rows_are_exact(neon, rng, n_tokens, width)
        test_rows.test_add_bias_is_exact(neon, rng, n_tokens, width)
        for activation in ("silu", "gelu"):
            test_rows.test_glu(neon, rng, activation, n_tokens, width)
        test_rows.test_rms_norm(neon, rng, n_tokens, 2, width)
    test_rows.test_resize_heads_is_exact(neon, rng, 3, 10, width)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope(neon: Compiled, rng, interleaved: bool) -> None:
    test_rows.test_rope(neon, rng, interleaved, 80, 32)


def test_quantize(neon: Compiled, rng) -> None:
    for n_planes in (1, 2):
        test_rows.test_quantize_is_exact(neon, rng, 3, 96, n_planes)
        test_rows.test_quantize_of_next_to_nothing(neon, rng, 1e-38, n_planes)
    test_rows.test_quantize_rounds_ties_to_even(neon)


@pytest.mark.parametrize("kv_type", [F16_CACHE, F32_CACHE], ids=repr)
@pytest.mark.parametrize("split", [False, True])
def test_attention_over_a_past(neon: Compiled, kv_type, split: bool) -> None:
    text = test_attention.Text(290, 80, 1, 3, kv_type=kv_type)
    for first, end, window in ((0, 40, None), (280, 290, None), (289, 290, 100)):
        np.testing.assert_allclose(
            text.attend(neon, first, end, window, split), text.twin(first, end, window), atol=test_attention.ATTENTION
        )


def test_what_scores_can_go_through(neon: Compiled) -> None:
    test_attention.test_what_scores_can_go_through(neon, "all", 300)
    test_attention.test_values_of_another_width_than_keys(neon, test_attention.F16_CACHE, 32, 80)


KINDS = [thorough_unless(kind is test_kv_types.KINDS[0], kind) for kind in test_kv_types.KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_attention_over_caches_of_integers(neon: Compiled, kind: CacheType) -> None:
    text = test_kv_types.Text(kind, 290, 80, 1, 3)
    got, want = text.attend(neon, 250, 290), text.twin(250, 290)
    np.testing.assert_allclose(got, want, atol=test_kv_types.ROUNDED)


def test_mixtures_of_experts(neon: Compiled) -> None:
    for how in test_experts.ROUTINGS:
        test_experts.test_routes_as_its_twin(lambda isa: neon, NEON, how, True)
    test_experts.test_rounded_inputs(lambda isa: neon, NEON, FORMATS["Q4_K"], True)
    test_experts.test_inputs_that_nobody_rounds(lambda isa: neon, NEON, FORMATS["F16"], False)
    test_experts.test_rows(lambda isa: neon, NEON, True)
    test_experts.test_clamped_swiglu(lambda isa: neon, NEON)


def test_recurrent_layers(neon: Compiled) -> None:
    test_recurrent.test_causal_conv(neon, np.random.default_rng(9), 300, 4)
    test_recurrent.test_delta_rule(neon, np.random.default_rng(9), 2, 4, 25, 80, 2)
    test_recurrent.test_gates(neon, np.random.default_rng(9), "sigmoid")


def test_gradients_of_attention(neon: Compiled) -> None:
    test_attention_backward.test_documents(neon, 23, 2, 2, (33, 1))
    test_attention_backward.test_what_a_token_sees(neon, 7, 6)
    test_attention_backward.test_a_group_in_parts(neon, 6, 3)


def test_texts_that_attend_to_themselves(neon: Compiled) -> None:
    kernels = CompiledEncoder(neon)
    test_encoder.test_text_attention(kernels, (7, 5, 2, 2), (33, 1))
    test_encoder.test_a_text_has_the_same_bits_among_others(kernels, 20)
    test_encoder.test_tanh(neon)


def test_what_is_appended_to_caches(neon: Compiled) -> None:
    test_attention.test_the_cache_layout(neon)
    for kind in test_kv_types.KINDS:
        test_kv_types.test_the_cache_layout(neon, kind, 80)
        test_kv_types.test_what_does_not_fit_spoils_its_groups_alone(neon, kind, np.inf)


@pytest.mark.parametrize("name", ["Q5_0", "Q5_1", "IQ4_XS", "Q4_K"])
def test_fit_gives_the_bits_of_its_twin(neon: Compiled, name: str) -> None:
    kind, store = FORMATS[name], neon.store
    x = test_fit.weights(kind, "heavy tails")
    for counts, importance in test_fit.importances(x.shape).items():
        found = CompiledFit(store)(kind, x, importance)
        test_fit.assert_same_bits(found, test_fit.twin(kind, "heavy tails", counts))
