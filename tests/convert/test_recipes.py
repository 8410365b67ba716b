"""Recipes: which tensor gets which type."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from edgellm.convert.parts import Part
from edgellm.convert.recipes import RECIPES, choose_formats, recipe_of
from edgellm.convert.source import tensor_of
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
        tensor_of(name, np.zeros(n_cols)) if name.endswith("norm") else Tensor(name, (512, n_cols), FORMATS["F16"], raw)
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


@pytest.mark.parametrize("name", ["Q7_K", "", "Q4_K_XL", "Q4_K_M "])
def test_unknown_recipes(name: str) -> None:
    with pytest.raises(UsageError, match="Q4_K_M"):
        recipe_of(name)
