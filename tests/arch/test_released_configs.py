"""config.json as releases have it, where a key is missing or means something of its own: as transformers takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.errors import EdgellmError
from tests.convert import checkpoints

IDS = np.random.default_rng(5).integers(2, 384, 60).tolist()
SHAPE = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
WINDOW = {"use_sliding_window": True, "sliding_window": 20}
FLOAT32 = 1e-4

Edit = Callable[[dict[str, Any]], Any]


def without(*keys: str) -> Edit:
    return lambda config: [config.pop(key, None) for key in keys]


CASES: dict[str, tuple[str, dict[str, Any], Edit]] = {
    "gelu that means tanh": ("Gemma", {"tie_word_embeddings": True}, lambda c: c.update(hidden_act="gelu")),
    "a window of all layers": ("Qwen3Moe", EXPERTS | WINDOW | {"max_window_layers": 3}, without()),
    "no base of rope": ("SmolLM3", {"pad_token_id": 0}, without("rope_parameters", "rope_theta")),
    "layers without rope slide": (
        "SmolLM3",
        WINDOW | {"pad_token_id": 0, "no_rope_layers": [1, 0, 1, 0]},
        without("layer_types"),
    ),
}


def saved(folder: Path, name: str, changes: dict[str, Any], edit: Edit) -> None:
    config = getattr(transformers, f"{name}Config")(**{k: v for k, v in (SHAPE | changes).items() if v is not ...})
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for x in model.parameters():
            x += torch.randn_like(x) * 0.1
    model.save_pretrained(folder)
    checkpoints.tokenizer().save_pretrained(folder)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("case", CASES)
def test_as_transformers_takes_it(case: str, tmp_path: Path) -> None:
    saved(tmp_path / "model", *CASES[case])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf", "F32")
    with edgellm.load(tmp_path / "model.gguf", n_threads=1, kv_type="f32", activations="f32") as loaded:
        np.testing.assert_allclose(loaded.logits(IDS), expected, atol=FLOAT32)


REFUSED: dict[str, tuple[str, dict[str, Any], Edit, str]] = {
    "experts' weights with a least sum": (
        "Ernie4_5_Moe", {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32},
        lambda c: c.update(moe_norm_min=0.5), "moe_norm_min is 0.5",
    ),
    "an activation that is no name": (
        "Falcon", {"head_dim": ..., "num_key_value_heads": ...}, lambda c: c.update(activation={}), "activation is {}",
    ),
    "short convolutions of no kind": (
        "Lfm2", {"layer_types": ["conv", "full_attention"] * 2}, lambda c: c.update(layer_types=[{}] * 4),
        "layer_types is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    *model, words = REFUSED[case]
    saved(tmp_path / "model", *model)
    with pytest.raises(EdgellmError, match=words):
        convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf", "F32")
    assert not (tmp_path / "model.gguf").exists()
