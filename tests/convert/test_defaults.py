"""What a checkpoint's config.json leaves out is what the classes of transformers have there, family by family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import edgellm
from edgellm.arch import ARCHITECTURES
from edgellm.arch.huggingface import HuggingFace
from edgellm.convert.checkpoints import convert_checkpoint

from . import checkpoints, families

# Windows that transformers drops where use_sliding_window is false, and widths that it writes for each layer.
OTHERWISE = {("Qwen2Config", "sliding_window"), ("Qwen3Config", "sliding_window"), ("Qwen2MoeConfig", "sliding_window"),
             ("Qwen3MoeConfig", "sliding_window"), ("Gemma3nTextConfig", "intermediate_size"),
             ("Ernie4_5_MoeConfig", "moe_layer_end_index")}  # fmt: skip


def known() -> Iterator[tuple[HuggingFace, Any]]:
    """Each kind of checkpoint with its class in transformers, where there is one that can be made of nothing."""
    for entry in ARCHITECTURES.values():
        for family in entry.hugging_face:
            classes = (getattr(transformers, name, None) for name in family.classes)
            config_class = next((found.config_class for found in classes if found is not None), None)
            if config_class is not None:
                yield family, config_class


CASES = list(known())


@pytest.mark.parametrize(("family", "config_class"), CASES, ids=[f"{c.__name__}: {f.classes[0]}" for f, c in CASES])
def test_defaults_are_those_of_transformers(family: HuggingFace, config_class: Any) -> None:
    config = config_class()
    config = config.get_text_config() if hasattr(config, "text_config") else config
    said = config.to_dict()
    for key, value in family.defaults.items():
        if key in said and key != "rope_parameters" and (type(config).__name__, key) not in OTHERWISE:
            assert said[key] == value, key
    base = getattr(type(config), "default_theta", 10000.0)
    if "rope_parameters" in said and type(base) is float and family.model_type != "nomic_bert":
        assert family.defaults.get("rope_theta", 10000.0) == base


LEFT_OUT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("gpt-oss", {}, {"rope_parameters": ..., "rope_scaling": {
        "type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}}),
    ("cohere2", {}, {"head_dim": ...}),
    ("olmo3", {}, {"layer_types": ..., "rope_theta": 500000.0, "rope_parameters": ..., "rope_scaling": {
        "rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 64}}),  # as published
    ("gemma4", {"global_head_dim": 16}, {}),  # written as an empty per_layer_config
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "changes"), LEFT_OUT, ids=[name for name, *_ in LEFT_OUT])
def test_logits_of_what_is_left_out(
    name: str, shape: dict[str, Any], changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    if name == "gpt-oss":
        checkpoints.save(name, folder)
    else:
        model_class, config_class, usual = families.FAMILIES[name]
        monkeypatch.setitem(families.FAMILIES, name, (model_class, config_class, usual | shape))
        families.model_of(name).save_pretrained(folder)
        checkpoints.tokenizer().save_pretrained(folder)
    checkpoints.edit_json(folder / "config.json", **changes)
    convert_checkpoint(folder, tmp_path / "out.gguf", "F32")
    ids = list(range(3, 90))
    with edgellm.load(tmp_path / "out.gguf", n_threads=1, kv_type="f32", activations="f32") as own:
        np.testing.assert_allclose(own.logits(ids), checkpoints.logits(checkpoints.load(folder), ids), atol=1e-4)
