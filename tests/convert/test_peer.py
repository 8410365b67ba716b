"""llama.cpp loads what is written and means the same by it; EDGELLM_PEER is a Python that has llama-cpp-python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.convert.quantize import quantize_file
from edgellm.train.new.model import new_model
from edgellm.train.new.shape import ShapeSettings
from edgellm.train.new.vocabulary import TokenizerSettings, learn_vocabulary

from . import checkpoints, families
from .mixtures import MIXTURES

PEER = os.environ.get("EDGELLM_PEER")
SCRIPT = Path(__file__).parents[2] / "tools" / "peer_llama_cpp.py"
pytestmark = pytest.mark.skipif(not PEER, reason="EDGELLM_PEER names no interpreter with llama-cpp-python")

# Shorter than a window: llama.cpp reads none in a Llama, and has Gemma's pattern of layers built in.
IDS = np.random.default_rng(6).integers(2, checkpoints.N_VOCAB, checkpoints.WINDOW - 2).tolist()
SAME_LOGITS = 0.02  # of float16 keys and values on both sides; logits have a standard deviation near 3
FAMILIES = [name for name in checkpoints.FAMILIES if name != "gemma3, own pattern"]
# Cases of other families that llama.cpp has too, biases, norms, windows and all.
SHARED = [
    *("llama, yarn", "llama, yarn with a factor of its own", "llama, yarn with mscale", "mistral3", "mistral3, window"),
    *("gemma", "gemma2", "gemma4", "gemma4, keys are values", "gemma4, no embeddings of layers"),
    *("phi3", "phi3, long-rope", "phi3, partial", "granite", "starcoder2", "stablelm", "stablelm, parallel", "gpt2"),
    *("gptneox", "falcon, two norms", "falcon, every head its own keys", "command-r", "cohere2", "exaone4, no window"),
    *("hunyuan-dense", "bloom", "mpt", "lfm2", "mixtral", "mixtral, window", "qwen2moe", "qwen3moe", "granitemoe"),
    *("ernie4_5-moe", "ernie4_5-moe, no shared expert", "gpt-oss, own layers", "deepseek v3", "glm 4.7 flash"),
    *("bailingmoe2", "qwen3next", "llama, dynamic"),
]
YARN = MIXTURES["gpt-oss"][2]["rope_parameters"]
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
_EQUAL_HEADS = {"linear_value_head_dim": 16, "attention_bias": False, "rope_parameters": _ROPE}
# Cases where llama.cpp (of llama-cpp-python 0.3.36) has built in what a checkpoint may say otherwise; with values such
# as those of the models that are published, it means the same.
BUILT_IN: list[tuple[str, dict[str, Any]]] = [
    # models/lfm2moe.cpp, load_arch_hparams: the weights of experts are never scaled.
    ("lfm2moe", {"routed_scaling_factor": 1.0}),
    # ggml.c, ggml_rope_yarn_corr_dims: the ramp of YaRN begins and ends at whole pairs, and this family's does not;
    # here its ends are nearly whole. llama-model.cpp: beta_fast and beta_slow are 32 and 1 for most families.
    ("gpt-oss", {"rope_parameters": YARN | {"rope_theta": 10350.0, "original_max_position_embeddings": 639}}),
    # llama-graph.cpp, build_moe_ffn: a group is as good as its two best experts; in version 2 it is as its best one.
    ("deepseek v2, groups", {"n_group": 1, "topk_group": 1}),
    # models/deepseek2.cpp, load_arch_hparams: queries without a low rank are those of 26 or 27 layers.
    ("deepseek v2", {"num_hidden_layers": 27}),
    # models/gemma2.cpp, load_arch_hparams and graph: there are always soft caps; 0 is divided by. Queries are scaled by
    # the size of a head, whatever query_pre_attn_scalar is.
    ("gemma2, no caps, own layers", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    # models/smollm3.cpp, load_arch_hparams: every fourth layer turns nothing; and biases are not loaded.
    ("smollm3, own layers", {"no_rope_layers": [1, 1, 1]}),
    ("smollm3", {"attention_bias": False}),
    # models/qwen35.cpp, load_arch_tensors: heads of keys and values have one size, and attention has no biases. Where
    # config.json has no mrope_section, that of the models is taken, whose heads are wider.
    ("qwen35", _EQUAL_HEADS),
    ("qwen35, attention in odd layers", _EQUAL_HEADS),
    ("qwen35, shared keys, every other layer", _EQUAL_HEADS),
    ("qwen35moe", {"rope_parameters": _ROPE}),
    # models/qwen3moe.cpp, graph: the weights of a token's experts always add up to one.
    ("qwen3moe, not normalized", {"norm_topk_prob": True}),
    # llama-model.cpp, create_memory: keys and values of the last two layers before those that share them are shared, of
    # which the first has a window.
    ("gemma4, shared", {"num_kv_shared_layers": 2}),
    # models/command-r.cpp and exaone4.cpp: only models of 64 layers have norms of heads, or windows.
    ("command-r, norms of heads", {"attention_bias": False, "num_hidden_layers": 64}),
    ("exaone4", {"num_hidden_layers": 64, "layer_types": None}),
    # Biases of these projections are not loaded, and OLMoE's norms are as wide as all heads (load_arch_tensors).
    ("falcon", {"bias": False}),
    ("olmo2", {"attention_bias": False}),
    ("ernie4_5", {"use_bias": False}),
    ("olmoe", {"num_key_value_heads": 4}),
]  # Gemma 3n's embeddings of layers always have 256 columns (models/gemma3n.cpp), so that there is no small one.


def peer_logits(path: Path, ids: list[int] = IDS) -> np.ndarray:
    ids_file, logits_file = path.with_suffix(".ids.npy"), path.with_suffix(".logits.npy")
    np.save(ids_file, ids)
    command = [str(PEER), str(SCRIPT), "logits", str(path), str(ids_file), str(logits_file)]
    subprocess.run(command, check=True, capture_output=True)
    return np.load(logits_file)


@pytest.mark.parametrize("family", FAMILIES)
def test_converted_files_mean_the_same_to_llama_cpp(family: str, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    path = tmp_path / "out.gguf"
    convert_checkpoint(tmp_path / "model", path)
    with edgellm.load(path) as model:
        own = model.logits(IDS)
    theirs = peer_logits(path)
    assert np.abs(own - theirs).mean() < SAME_LOGITS
    assert np.mean(own.argmax(-1) == theirs.argmax(-1)) > 0.95


@pytest.mark.parametrize("family", SHARED)
def test_other_families_mean_the_same_to_llama_cpp(family: str, tmp_path: Path) -> None:
    if family in MIXTURES:
        checkpoints.save(family, tmp_path / "model")
    else:
        families.model_of(family).save_pretrained(tmp_path / "model")
        checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    path = tmp_path / "out.gguf"
    convert_checkpoint(tmp_path / "model", path)
    with edgellm.load(path, activations="f32", kv_type="f32") as model:
        own = model.logits(IDS)
    theirs = peer_logits(path)
    assert np.abs(own - theirs).mean() < 0.04 * own.std()
    assert np.mean(own.argmax(-1) == theirs.argmax(-1)) > 0.9


@pytest.mark.parametrize(("family", "changes"), BUILT_IN, ids=lambda part: part if isinstance(part, str) else "")
def test_what_llama_cpp_has_built_in(
    family: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = MIXTURES if family in MIXTURES else families.FAMILIES
    monkeypatch.setitem(cases, family, (*cases[family][:2], cases[family][2] | changes))
    test_other_families_mean_the_same_to_llama_cpp(family, tmp_path)


def test_a_new_model_with_experts_means_the_same_to_llama_cpp(tmp_path: Path) -> None:
    shape = ShapeSettings(n_layers=2, n_embd=64, n_ctx=64, n_experts=6, n_experts_used=3, n_expert_ff=32).shape()
    vocabulary = learn_vocabulary(TokenizerSettings("bpe", 400), ["a text of a few words"])
    model = new_model("made", shape, vocabulary, seed=1)
    for x in model.weights.values():
        x *= 10 if x.ndim > 1 else 1  # experts that differ, as trained ones do
    model.write(tmp_path / "new.gguf")
    ids = [i % vocabulary.n_vocab for i in IDS]
    with edgellm.load(tmp_path / "new.gguf", activations="f32", kv_type="f32") as loaded:
        own = loaded.logits(ids)
    theirs = peer_logits(tmp_path / "new.gguf", ids)
    assert np.abs(own - theirs).mean() < 0.02 * own.std()
    assert np.mean(own.argmax(-1) == theirs.argmax(-1)) > 0.95


@pytest.mark.parametrize("type_name", ["Q8_0", "Q5_1", "Q4_0", "IQ4_NL"])
def test_quantized_files_mean_the_same_to_llama_cpp(type_name: str, tmp_path: Path) -> None:
    checkpoints.save("llama", tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "f32.gguf")
    path = tmp_path / "small.gguf"
    quantize_file(tmp_path / "f32.gguf", path, type_name)
    with edgellm.load(path) as model:
        own = model.logits(IDS)
    # Both round activations to 8 bits, each in its own way.
    assert np.abs(own - peer_logits(path)).mean() < 0.05 * own.std()
