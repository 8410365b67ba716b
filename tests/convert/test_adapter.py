"""PEFT adapters: what the GGUF file adds to a weight is what PEFT adds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.errors import EdgellmError, FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.formats.gguf import GGUFFile

from . import checkpoints

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(folder: Path, base: Path, family: str = "llama", **settings: Any) -> Any:
    """An adapter with random weights, made for the model in `base`."""
    model = checkpoints.save(family, base)
    config = LoraConfig(**({"r": 4, "lora_alpha": 12, "target_modules": ALL, "task_type": "CAUSAL_LM"} | settings))
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, x in adapted.named_parameters():
            if "lora_" in name:
                x.copy_(torch.randn_like(x))
    adapted.save_pretrained(folder)
    return adapted


def added(path: Path) -> dict[str, np.ndarray]:
    """alpha / rank * B A for each weight that an adapter file changes."""
    with GGUFFile.open(path) as file:
        assert file.get("general.type", str) == "adapter"
        assert file.get("adapter.type", str) == "lora"
        alpha = file.get("adapter.lora.alpha", float)
        names = [name.removesuffix(".lora_a") for name in file.tensors if name.endswith(".lora_a")]
        pairs = {name: [file.tensors[f"{name}.lora_{side}"].dequantize() for side in "ab"] for name in names}
        assert len(file.tensors) == 2 * len(names)
        return {name: alpha / len(a) * b @ a for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"o_proj": 3, "model.layers.1.mlp.up_proj": 5}},
        {"target_modules": ["q_proj", "down_proj"], "r": 1},
    ],
)
def test_what_it_adds(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    adapted = save_adapter(tmp_path / "adapter", tmp_path / "base", family, **settings)
    convert(tmp_path / "adapter", tmp_path / "adapter.gguf", base=tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "base.gguf")
    found = added(tmp_path / "adapter.gguf")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    checkpoints.tokenizer().save_pretrained(tmp_path / "merged")
    convert(tmp_path / "merged", tmp_path / "merged.gguf")
    with GGUFFile.open(tmp_path / "base.gguf") as base, GGUFFile.open(tmp_path / "merged.gguf") as expected:
        changed = [
            name for name in base.tensors if not np.array_equal(base.tensors[name].raw, expected.tensors[name].raw)
        ]
        assert set(found) == set(changed)
        for name, delta in found.items():
            difference = expected.tensors[name].dequantize() - base.tensors[name].dequantize()
            np.testing.assert_allclose(delta, difference, atol=2e-5)


def test_the_base_may_be_a_gguf_file_or_where_the_adapter_says(tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "base.gguf")
    convert(tmp_path / "adapter", tmp_path / "a.gguf", base=tmp_path / "base.gguf")
    convert(tmp_path / "adapter", tmp_path / "b.gguf", base=tmp_path / "base")
    checkpoints.edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))
    convert(tmp_path / "adapter", tmp_path / "c.gguf")
    a, b, c = (added(tmp_path / f"{name}.gguf") for name in "abc")
    for name, delta in a.items():
        np.testing.assert_array_equal(delta, b[name])
        np.testing.assert_array_equal(delta, c[name])


# --- what cannot be converted -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_adapter(folder / "adapter", folder / "base")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "all"))


def refused(folder: Path, kind: type[EdgellmError], *words: str, type_name: str = "auto") -> None:
    with pytest.raises(kind) as raised:
        convert(folder / "adapter", folder / "bad.gguf", type_name, base=folder / "base")
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not (folder / "bad.gguf").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, ("IA3",)),
        ({"peft_type": ...}, UnsupportedError, ("LORA",)),
        ({"use_dora": True}, FormatError, ("lora_magnitude_vector",)),
        ({"lora_bias": True}, UnsupportedError, ("lora_bias",)),
        ({"init_lora_weights": "pissa"}, UnsupportedError, ("pissa", "path_initial_model_for_weight_conversion")),
        ({"r": 5}, FormatError, ("rank 4", "says 5")),
        ({"rank_pattern": {"q_proj": 2}}, FormatError, ("rank 4", "says 2", "rank_pattern")),
        ({"lora_alpha": "a"}, FormatError, ("lora_alpha",)),
        ({"lora_alpha": 0}, FormatError, ("lora_alpha",)),
        ({"alpha_pattern": {"(a+)+": 3}}, UnsupportedError, ("alpha_pattern",)),
        ({"alpha_pattern": {"[": 3}}, FormatError, ("alpha_pattern", "regular expression")),
        ({"alpha_pattern": {"q_proj": "x"}}, FormatError, ("q_proj",)),
    ],
)
def test_settings_that_a_gguf_adapter_cannot_have(folder: Path, changes, kind, words) -> None:
    checkpoints.edit_json(folder / "adapter" / "adapter_config.json", **changes)
    refused(folder, kind, "adapter_config.json", *words)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "BOTTLENECK"])
def test_kinds_that_change_no_weights(folder: Path, kind: str) -> None:
    checkpoints.edit_json(folder / "adapter" / "adapter_config.json", peft_type=kind)
    refused(folder, UnsupportedError, f"the adapter is '{kind}', which is no change of weights", "(--lora)")


def test_an_unknown_base(folder: Path) -> None:
    checkpoints.edit_json(folder / "adapter" / "adapter_config.json", base_model_name_or_path="some/model")
    with pytest.raises(UsageError, match=r"some/model.*--base"):
        convert(folder / "adapter", folder / "bad.gguf")


def test_a_base_of_another_shape(folder: Path) -> None:
    checkpoints.edit_json(folder / "base" / "config.json", num_attention_heads=8)
    refused(folder, FormatError, "q_proj", "rows")


def test_adapters_are_not_quantized(folder: Path) -> None:
    refused(folder, UsageError, "Q4_K_M", "floats", type_name="Q4_K_M")


def test_half_a_pair_and_strangers(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    save_file({key: x for key, x in tensors.items() if key != name}, path)
    refused(folder, FormatError, "model.layers.1.self_attn.q_proj", "has lora_A; expected lora_A and lora_B")
    save_file(tensors | {"base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight": torch.zeros(4, 4)}, path)
    refused(folder, UnsupportedError, "layers.9")
    save_file(tensors | {name: torch.zeros(64, 3)}, path)
    refused(folder, FormatError, "q_proj", "shape")
    path.unlink()
    refused(folder, FileProblem)
