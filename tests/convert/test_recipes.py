"""Recipes: which tensor gets which type."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from edgellm.convert.parts import Part
from edgellm.convert.recipes import RECIPES, choose_formats, recipe_of, true_recipe
from edgellm.errors import UsageError
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS


def model(
    n_layers: int = 32, group: int = 4, n_cols: int = 256, tied: bool = False
) -> tuple[list[Part], dict[str, Any]]:
    """The tensors of a Llama, without their weights."""
    raw = np.zeros((0, 2 * n_cols), np.uint8)
    names = ["token_embd", "output_norm", *([] if tied else ["output"])]
    parts = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    names += [f"blk.{layer}.{part}" for layer in range(n_layers) for part in parts]
    metadata = {"general.architecture": "llama", "llama.block_count": n_layers, "llama.attention.head_count": 8,
                "llama.attention.head_count_kv": 8 // group}  # fmt: skip
    tensors = [
        Tensor.of(name, np.zeros(n_cols)) if name.endswith("norm") else Tensor(name, (512, n_cols), FORMATS["F16"], raw)
        for name in names
    ]
    return [Part(f"{tensor.name}.weight", tensor) for tensor in tensors], metadata


def types(recipe: str, part: str, **shape: Any) -> list[str]:
    """The types of a tensor in all layers."""
    parts, metadata = model(**shape)
    chosen = choose_formats(recipe_of(recipe), parts, metadata)
    return [str(block_format) for name, block_format in chosen.items() if name.endswith(f".{part}.weight")]


def test_norms_stay_floats_and_the_output_gets_more() -> None:
    for name in RECIPES:
        parts, metadata = model()
        chosen = choose_formats(recipe_of(name), parts, metadata)
        assert chosen["blk.3.attn_norm.weight"] is FORMATS["F32"]
        assert chosen["output.weight"].bits_per_weight >= max(chosen["token_embd.weight"].bits_per_weight, 6.5)


def test_tied_embeddings_count_as_the_output() -> None:
    parts, metadata = model(tied=True)
    assert choose_formats(recipe_of("Q4_0"), parts, metadata)["token_embd.weight"] is FORMATS["Q6_K"]


def test_the_layers_that_get_more_bits() -> None:
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]  # of 32
    expected = ["Q6_K" if layer in more else "Q4_K" for layer in range(32)]
    assert types("Q4_K_M", "attn_v") == types("Q4_K_M", "ffn_down") == expected
    assert Counter(types("Q4_K_M", "attn_q")) == {"Q4_K": 32}
    assert types("Q5_K_M", "ffn_down") == [name.replace("Q4", "Q5") for name in expected]


def test_the_other_mixes() -> None:
    assert types("Q4_K_S", "attn_v") == ["Q5_K"] * 4 + ["Q4_K"] * 28
    assert types("Q4_K_S", "ffn_down") == ["Q5_K"] * 4 + ["Q4_K"] * 28
    assert types("Q3_K_M", "attn_v") == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert types("Q3_K_M", "ffn_down") == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert types("Q3_K_M", "attn_output") == ["Q4_K"] * 32
    assert types("Q3_K_L", "attn_output") == ["Q5_K"] * 32
    assert types("Q2_K", "attn_v") == ["Q4_K"] * 32 and types("Q2_K", "attn_v", group=1) == ["Q3_K"] * 32
    assert types("IQ4_XS", "attn_v") == ["Q5_K"] * 32 and types("IQ4_XS", "attn_v", group=2) == ["IQ4_XS"] * 32


@pytest.mark.parametrize(
    ("recipe", "n_cols", "expected"),
    [("Q4_K_S", 96, "Q5_0"), ("Q5_K_S", 96, "Q5_1"), ("Q6_K", 96, "Q8_0"), ("Q3_K_S", 96, "Q4_0"), ("Q2_K", 96, "Q4_0"),
     ("IQ4_XS", 96, "IQ4_NL"), ("Q4_K_S", 100, "F16"), ("Q8_0", 100, "F16"), ("MXFP4", 64, "MXFP4")],
)  # fmt: skip
def test_rows_that_blocks_do_not_divide(recipe: str, n_cols: int, expected: str) -> None:
    assert set(types(recipe, "attn_q", n_cols=n_cols)) == {expected}


def test_overrides() -> None:
    parts, metadata = model(n_layers=2)
    chosen = choose_formats(
        recipe_of("q4_0"), parts, metadata, ["blk.1.ffn_down.weight=F16", r"ffn_(up|down)=q6_k", "*attn_k*=IQ4_NL"]
    )
    names = {name: str(block_format) for name, block_format in chosen.items()}
    assert names["blk.1.ffn_down.weight"] == "F16" and names["blk.0.ffn_down.weight"] == "Q6_K"
    assert names["blk.0.ffn_up.weight"] == "Q6_K" and names["blk.0.attn_k.weight"] == "IQ4_NL"
    assert names["blk.0.attn_q.weight"] == "Q4_0" and names["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("override", "problem"),
    [("ffn_down", "PATTERN=TYPE"), ("=q6_k", "PATTERN=TYPE"), ("ffn_down=q9", "q9"), ("nothing=q6_k", "fits no matrix"),
     ("attn_norm=q6_k", "fits no matrix"), ("ffn_[=q6_k", "fits no matrix"), ("attn_q=Q6_K", "multiple of 256")],
)  # fmt: skip
def test_overrides_that_cannot_be(override: str, problem: str) -> None:
    parts, metadata = model(n_layers=2, n_cols=96)
    with pytest.raises(UsageError, match=problem):
        choose_formats(recipe_of("Q4_0"), parts, metadata, [override])


# --- families that edgellm does not run ---------------------------------------------------------------------


def part_of(name: str, *shape: int, kind: str = "F16") -> Part:
    """A tensor without its weights."""
    return Part(name, Tensor(name, shape, FORMATS[kind], np.zeros((0, FORMATS[kind].row_bytes(shape[-1])), np.uint8)))


def chosen_for(parts: list[Part], recipe: str = "Q4_K_M", n_layers: int = 8) -> dict[str, str]:
    metadata = {"general.architecture": "other", "other.block_count": n_layers}
    found = choose_formats(recipe_of(recipe), parts, metadata)
    return {name: str(block_format) for name, block_format in found.items()}


STAYS = [
    ("blk.0.ffn_gate_inp.weight", (128, 2048)), ("blk.1.ffn_gate_inp_shexp.weight", (1, 2048)),
    ("blk.0.altup_router.weight", (64, 2048)), ("blk.0.altup_predict_coef.weight", (64, 64)),
    ("blk.0.laurel_l.weight", (64, 2048)), ("per_layer_model_proj.weight", (2048, 2048)),
    ("blk.3.ssm_conv1d.weight", (4096, 4)), ("blk.0.shortconv.conv.weight", (2048, 3)),
    ("blk.0.ssm_x.weight", (192, 4096)), ("blk.0.ssm_dt.weight", (4096, 128)), ("blk.0.ssm_a", (4096, 256)),
    ("blk.0.ssm_ba.weight", (64, 2048)), ("position_embd.weight", (512, 768)), ("token_types.weight", (2, 768)),
    ("enc.blk.0.attn_rel_b.weight", (32, 256)), ("blk.0.attn_q_norm.weight", (32, 256)),
    ("blk.0.time_mix_w1.weight", (160, 2048)), ("blk.0.time_mix_lerp_fused.weight", (5, 1, 2048)),
    ("blk.0.time_mix_decay_w2.weight", (2048, 64)), ("v.patch_embd.weight", (1024, 3, 14, 14)),
    ("v.position_embd.weight", (729, 1024)), ("a.conv1d.1.weight", (1024, 512, 3)), ("conv1d.weight", (512, 512, 7)),
    ("convnext.0.pw1.weight", (768, 768)), ("blk.0.of_next_year.weight", (16, 4096)),
    ("blk.0.of_next_year.weight", (4096, 16)), ("rope_factors_long.weight", (2, 256)),
]  # fmt: skip


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q2_K", "Q8_0", "IQ4_XS", "F16", "BF16"])
@pytest.mark.parametrize(("name", "shape"), STAYS)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_what_is_no_linear_stays_as_it_is(recipe: str, name: str, shape: tuple[int, ...], kind: str) -> None:
    parts = [part_of(name, *shape, kind=kind), part_of("blk.0.attn_q.weight", 2048, 2048)]
    assert chosen_for(parts, recipe)[name] == kind


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.ffn_gate_exps.weight", (8, 512, 256), "Q4_K"), ("blk.0.ffn_up_shexp.weight", (512, 256), "Q4_K"),
        ("blk.0.ffn_down_exps.weight", (8, 256, 512), "Q6_K"), ("blk.2.ffn_down_exps.weight", (8, 256, 512), "Q4_K"),
        ("blk.0.ffn_down_shexp.weight", (256, 512), "Q6_K"), ("blk.0.attn_qkv.weight", (768, 256), "Q4_K"),
        ("blk.0.attn_q_a.weight", (1536, 2048), "Q4_K"), ("blk.0.attn_k_b.weight", (16, 512, 256), "Q4_K"),
        ("blk.0.ssm_in.weight", (4096, 2048), "Q4_K"), ("blk.0.ssm_out.weight", (2048, 4096), "Q4_K"),
        ("blk.0.shortconv.in_proj.weight", (6144, 2048), "Q4_K"), ("blk.0.time_mix_key.weight", (2048, 2048), "Q4_K"),
        ("dec.blk.0.cross_attn_v.weight", (2048, 2048), "Q4_K"), ("blk.0.of_next_year.weight", (64, 256), "Q4_K"),
        ("blk.0.attn_k.weight", (16, 256), "Q4_K"),
    ],
)  # fmt: skip
def test_linears_of_any_family(name: str, shape: tuple[int, ...], expected: str) -> None:
    parts = [part_of(name, *shape), part_of("blk.7.attn_q.weight", 2048, 2048)]
    assert chosen_for(parts)[name] == expected


def test_an_override_reaches_what_stays() -> None:
    parts = [part_of("blk.0.ffn_gate_inp.weight", 8, 256), part_of("blk.0.attn_q.weight", 256, 256)]
    found = choose_formats(recipe_of("Q4_K_M"), parts, {"general.architecture": "x"}, ["ffn_gate_inp=q8_0"])
    assert found["blk.0.ffn_gate_inp.weight"] is FORMATS["Q8_0"]


# --- what a file may call itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "n_cols", "expected"),
    [("Q4_K_M", 256, "Q4_K_M"), ("Q4_K_M", 48, "F16"), ("Q4_K_M", 96, "Q5_0"), ("Q6_K", 96, "Q8_0"),
     ("IQ4_XS", 96, "IQ4_NL"), ("Q3_K_S", 96, "Q4_0"), ("Q2_K", 256, "Q2_K"), ("Q5_K_S", 160, "Q5_1"),
     ("Q8_0", 48, "F16"), ("BF16", 48, "BF16"), ("Q4_0", 96, "Q4_0"), ("MXFP4", 64, "MXFP4")],
)  # fmt: skip
def test_a_file_calls_itself_what_most_of_it_is(recipe: str, n_cols: int, expected: str) -> None:
    parts, metadata = model(n_cols=n_cols)
    formats = choose_formats(recipe_of(recipe), parts, metadata)
    assert true_recipe(recipe_of(recipe), parts, formats).name == expected
    said = "\n".join(formats.told())
    replaced = {part.name for part in parts if f"rows of {n_cols} weights" in said}
    assert bool(replaced) == any(n_cols % FORMATS[name].block_size for name in (recipe_of(recipe).base, "Q6_K")
                                 if not recipe_of(recipe).is_float and recipe != "MXFP4")  # fmt: skip


def test_few_replaced_tensors_change_no_name() -> None:
    parts = [part_of("blk.0.attn_q.weight", 256, 256), part_of("blk.0.ffn_down.weight", 256, 48)]
    formats = choose_formats(recipe_of("Q4_K_S"), parts, {"general.architecture": "x"})
    assert true_recipe(recipe_of("Q4_K_S"), parts, formats).name == "Q4_K_S"
    assert formats.told() == [
        "blk.0.ffn_down.weight has rows of 48 weights, which Q4_K does not divide (blocks of 256): F16 in its place"
    ]


@pytest.mark.parametrize("name", ["Q7_K", "", "Q4_K_XL", "Q4_K_M "])
def test_unknown_recipes(name: str) -> None:
    with pytest.raises(UsageError, match="Q4_K_M"):
        recipe_of(name)


MIXTURE = {
    "general.architecture": "llama", "llama.block_count": 8, "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
}  # fmt: skip
OF_A_MIXTURE = {
    "token_embd": (512, 256), "output": (512, 256), "blk.4.ffn_gate_inp": (8, 256),
    **{f"blk.4.attn_{part}": (256, 256) for part in ("q", "k", "v", "output")},
    **{f"blk.4.ffn_{part}_exps": (8, 256, 256) for part in ("gate", "up", "down")},
    "blk.7.ffn_down_exps": (8, 256, 256), "blk.7.ffn_down_shexp": (256, 256), "blk.7.ffn_gate_inp_shexp": (1, 256),
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "n_experts", "expected"),
    [
        ("Q4_K_M", 8, {"blk.4.attn_k": "Q8_0", "blk.4.attn_v": "Q8_0", "blk.4.attn_output": "Q5_K",
                       "blk.4.attn_q": "Q4_K", "blk.4.ffn_down_exps": "Q4_K", "blk.7.ffn_down_exps": "Q6_K",
                       "blk.7.ffn_down_shexp": "Q6_K", "output": "Q6_K"}),
        ("Q4_K_M", 64, {"blk.4.attn_k": "Q4_K", "blk.4.attn_v": "Q4_K", "blk.4.attn_output": "Q4_K",
                        "blk.7.ffn_down_exps": "Q6_K"}),
        ("Q5_K_M", 8, {"blk.4.attn_output": "Q5_K", "blk.4.attn_k": "Q8_0"}),
        ("MXFP4", 32, {"blk.4.ffn_gate_exps": "MXFP4", "blk.4.attn_q": "Q8_0", "blk.7.ffn_down_shexp": "Q8_0",
                       "token_embd": "Q8_0"}),
        ("Q2_K", 8, {"blk.4.ffn_down_exps": "Q3_K", "blk.4.attn_output": "Q5_K", "blk.4.ffn_up_exps": "Q2_K"}),
    ],
)  # fmt: skip
def test_mixtures_of_experts(recipe: str, n_experts: int, expected: dict[str, str]) -> None:
    """As llama.cpp has them: what is small beside the experts gets more bits, and routers stay as they are."""
    parts = [
        Part(f"{name}.weight", Tensor(name, shape, FORMATS["F32"], np.zeros((1, 4), np.uint8)))
        for name, shape in OF_A_MIXTURE.items()
    ]
    formats = choose_formats(RECIPES[recipe], parts, MIXTURE | {"llama.expert_count": n_experts})
    routers = {"blk.4.ffn_gate_inp": "F32", "blk.7.ffn_gate_inp_shexp": "F32"}
    assert {name: formats[f"{name}.weight"].name for name in expected | routers} == expected | routers
