"""A checkpoint whose tensors are not those that its config.json promises is refused, by the tensor and by the key."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint, open_source
from edgellm.errors import EdgellmError

from . import checkpoints, encoder_checkpoints, families
from .mixtures import MIXTURES

# Families with parts that a layer may have or not, or that checkpoints join or name otherwise.
DENSE = [
    "command-r, norms of heads", "falcon, two norms", "gemma3n", "gemma4, keys are values", "gemma4, shared", "mpt",
    "phi3", "stablelm, parallel",
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the folder of a case, made once."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("saved") / "model"
            if name in MIXTURES or name in checkpoints.FAMILIES:
                checkpoints.save(name, made[name])
            else:
                families.model_of(name).save_pretrained(made[name])
                checkpoints.tokenizer().save_pretrained(made[name])
        return made[name]

    return folder_of


def refused(folder: Path) -> str:
    """The one line with which converting ends."""
    with pytest.raises(EdgellmError) as raised, open_source(folder):
        pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


def one_of_each(names: Iterable[str]) -> list[str]:
    """Names of tensors, of all layers those of the first and of the last that have such a one."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"\.\d+\.", ".N.", name), []).append(name)
    return [name for same in found.values() for name in dict.fromkeys([same[0], same[-1]])]


@pytest.mark.parametrize("name", [*DENSE, *MIXTURES])
def test_a_tensor_that_is_missing_is_named(name: str, saved: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved(name), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    for missing in one_of_each(tensors):
        if missing.endswith("layer_scalar"):
            continue  # which is 1 then
        kept = {name: x for name, x in tensors.items() if name != missing}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        # The last of several that become one tensor shows by its shape, and that has a star for the number.
        any_number = re.sub(r"\d+\.weight$", "*.weight", missing)
        said = refused(folder)
        assert repr(missing) in said or repr(any_number) in said


@pytest.mark.parametrize("name", [*encoder_checkpoints.FAMILIES, *(f"ranker: {n}" for n in encoder_checkpoints.RANKERS),
                                  "jina", "nomic, first form"])  # fmt: skip
def test_a_tensor_of_an_encoder_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if name in ("jina", "nomic, first form"):
        save = encoder_checkpoints.save_jina if name == "jina" else encoder_checkpoints.save_first_nomic
        save(folder)
    else:
        kinds = encoder_checkpoints.RANKERS if name.startswith("ranker") else encoder_checkpoints.FAMILIES
        encoder_checkpoints.save(kinds, name.removeprefix("ranker: "), folder)
    tensors = load_file(folder / "model.safetensors")
    for missing in one_of_each(tensors):
        if not name.startswith("ranker") and "pooler." in missing:
            continue  # of which vectors have no need
        kept = {name: x for name, x in tensors.items() if name != missing}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        own = missing.removeprefix("bert.") if "pooler." in missing else missing
        assert f"'{own}'" in refused(folder)


CONTRADICTIONS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("command-r", {"use_qk_norm": True}, ("no tensor 'model.layers.0.self_attn.q_norm.weight'", "use_qk_norm is true")),
    ("command-r, norms of heads", {"use_qk_norm": False}, ("self_attn.q_norm.weight'", "use_qk_norm is false")),
    ("command-r, norms of heads", {"use_qk_norm": ...}, ("self_attn.q_norm.weight'", "use_qk_norm is missing")),
    ("stablelm", {"qk_layernorm": True}, ("self_attn.q_layernorm", "qk_layernorm is true")),
    ("stablelm, parallel", {"qk_layernorm": False}, ("self_attn.q_layernorm", "qk_layernorm is false")),
    ("stablelm", {"use_parallel_residual": True}, ("post_attention_layernorm", "use_parallel_residual is true")),
    ("stablelm, parallel", {"use_parallel_residual": False}, ("post_attention_layernorm", "use_parallel_residual")),
    ("falcon", {"num_ln_in_parallel_attn": 2}, ("num_ln_in_parallel_attn is 2",)),
    ("falcon", {"parallel_attn": False}, ("parallel_attn is False",)),
    ("falcon", {"parallel_attn": None}, ("parallel_attn is null",)),
    ("falcon, every head its own keys", {"new_decoder_architecture": True, "num_kv_heads": 4},
     ("no tensor 'transformer.h.0.ln_attn.weight'", "new_decoder_architecture is true")),
    ("falcon, two norms", {"num_ln_in_parallel_attn": 1}, ("ln_attn.weight'", "num_ln_in_parallel_attn is 1")),
    ("falcon, two norms", {"parallel_attn": False}, ("parallel_attn",)),
    ("gemma4", {"attention_k_eq_v": True}, ("layers.1.self_attn.v_proj.weight'", "attention_k_eq_v is true")),
    ("gemma4, keys are values", {"attention_k_eq_v": False},
     ("no tensor 'model.layers.1.self_attn.v_proj.weight'", "attention_k_eq_v is false")),
    ("gemma4, no embeddings of layers", {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2,
                                         "moe_intermediate_size": 32}, ("router.proj", "enable_moe_block is true")),
    ("deepseek v2", {"first_k_dense_replace": 2},
     ("layers.1.mlp.gate.weight'", "layer 1 has none", "first_k_dense_replace is 2")),
    ("deepseek v2", {"first_k_dense_replace": 0}, ("no tensor 'model.layers.0.mlp.gate.weight'",)),
    ("deepseek v2", {"mlp_bias": True}, ("mlp_bias is True",)),
    ("deepseek v3", {"first_k_dense_replace": 2}, ("layers.1.mlp.gate", "first_k_dense_replace is 2")),
    ("glm 4.7 flash", {"mlp_layer_types": ["dense", "dense", "sparse"]}, ("layers.1.mlp.gate", "mlp_layer_types is")),
    ("ernie4_5-moe", {"moe_layer_start_index": 2}, ("layers.1.mlp.gate", "moe_layer_start_index is 2")),
    ("ernie4_5-moe, no shared expert", {"moe_layer_start_index": ...}, ("moe_layer_start_index is 1",)),
    ("lfm2moe", {"num_dense_layers": 0}, ("layers.0.feed_forward.gate", "num_dense_layers is 0")),
    ("lfm2moe", {"use_expert_bias": False}, ("layers.1.feed_forward.expert_bias", "use_expert_bias is false")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "words"), CONTRADICTIONS, ids=[f"{c[0]}: {c[1]}" for c in CONTRADICTIONS])
def test_config_json_and_tensors_that_contradict_each_other(
    name: str, changes: dict[str, Any], words: tuple[str, ...], saved: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(name), tmp_path / "model"))
    checkpoints.edit_json(folder / "config.json", **changes)
    _, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert told["missing_keys"] or told["unexpected_keys"]  # of which transformers makes another model
    said = refused(folder)
    for word in words:
        assert word in said


def test_a_feed_forward_in_place_of_experts(saved: Any, tmp_path: Path) -> None:
    """Of a family in which config.json cannot say so, or did not: transformers would make the experts up."""
    folder = Path(shutil.copytree(saved("qwen3moe"), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if not name.startswith("model.layers.1.mlp.")}
    for part, shape in (("gate", (96, 64)), ("up", (96, 64)), ("down", (64, 96))):
        kept[f"model.layers.1.mlp.{part}_proj.weight"] = torch.zeros(shape)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert "'model.layers.1.mlp.gate.weight'" in refused(folder)


def test_null_is_false_where_transformers_takes_it_as_that(saved: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("deepseek v3"), tmp_path / "model"))
    checkpoints.edit_json(folder / "config.json", norm_topk_prob=None)
    convert_checkpoint(folder, tmp_path / "out.gguf")
    ids = list(range(3, 60))
    with edgellm.load(tmp_path / "out.gguf", n_threads=1, kv_type="f32", activations="f32") as own:
        np.testing.assert_allclose(own.logits(ids), checkpoints.logits(checkpoints.load(folder), ids), atol=1e-3)
    checkpoints.edit_json(folder / "config.json", rope_interleave=None)
    assert "rope_interleave" in refused(folder)


def test_layers_of_gemma4_without_a_scale_have_one_of_1(saved: Any, tmp_path: Path) -> None:
    """As in transformers, whose layers begin with it: of all layers, or of some."""
    folder = Path(shutil.copytree(saved("gemma4, shared"), tmp_path / "model"))
    ids = list(range(3, 60))
    for which in (".1.layer_scalar", ".layer_scalar"):
        kept = {name: x for name, x in load_file(folder / "model.safetensors").items() if not name.endswith(which)}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        convert_checkpoint(folder, tmp_path / f"{which}.gguf")
        with edgellm.load(tmp_path / f"{which}.gguf", n_threads=1, kv_type="f32", activations="f32") as own:
            np.testing.assert_allclose(own.logits(ids), checkpoints.logits(checkpoints.load(folder), ids), atol=1e-4)
