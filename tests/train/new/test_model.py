"""New models: their first weights, and files that run at once."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import edgellm
from edgellm.errors import FileProblem, TemplateError
from edgellm.train.new.model import NewModel, first_weights, new_model
from edgellm.train.new.shape import ShapeSettings
from edgellm.train.new.vocabulary import KINDS, TokenizerSettings, learn_vocabulary

ORDINARY = (resources.files("edgellm.evaluate") / "ordinary.txt").read_text("utf-8")
SHAPE = ShapeSettings(n_layers=2, n_embd=64, n_heads=4, n_kv_heads=2, n_ff=100, n_ctx=64).shape()


def made(kind: str = "bpe", tied: bool = True, **settings: Any) -> NewModel:
    vocabulary = learn_vocabulary(TokenizerSettings(kind, 400, **settings), [ORDINARY])
    shape = ShapeSettings(2, 64, n_heads=4, n_kv_heads=2, n_ff=100, n_ctx=64, tied_embeddings=tied).shape()
    return new_model("made", shape, vocabulary, seed=1)


def test_first_weights_are_drawn_as_said() -> None:
    weights = first_weights(ShapeSettings(n_layers=8, n_embd=256, tied_embeddings=False).shape(), 1000, seed=5)
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in weights.values())
    for name, x in weights.items():
        if x.ndim == 1:
            assert (x == 1).all(), name
            continue
        is_added = "attn_output" in name or "ffn_down" in name
        expected = 0.02 / math.sqrt(16) if is_added else 0.02
        assert abs(x.std() / expected - 1) < 0.02 and abs(x.mean()) < 0.02 * expected, name


def test_the_seed_decides_and_no_other_tensor_does() -> None:
    one, same, other = (first_weights(SHAPE, 300, seed) for seed in (1, 1, 2))
    for name, x in one.items():
        assert (x == same[name]).all()
        assert x.ndim == 1 or (x != other[name]).any()
    deeper = first_weights(ShapeSettings(3, 64, n_heads=4, n_kv_heads=2, n_ff=100).shape(), 300, 1)
    assert (deeper["blk.1.attn_q.weight"] == one["blk.1.attn_q.weight"]).all()
    assert not np.array_equal(one["blk.0.attn_q.weight"], one["blk.1.attn_q.weight"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_file_runs_and_computes_what_llama_does(kind: str, tied: bool, tmp_path: Path) -> None:
    model = made(kind, tied)
    model.write(tmp_path / "new.gguf")
    config = LlamaConfig(
        vocab_size=len(model.weights["token_embd.weight"]), hidden_size=64, intermediate_size=100,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        rms_norm_eps=1e-5, max_position_embeddings=64,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(_state(model, tied), strict=True)
    with edgellm.load(tmp_path / "new.gguf", activations="f32", kv_type="f32", n_threads=1) as loaded:
        ids = loaded.tokenize("The weather, it's said,", add_special=True)
        ours = np.asarray(loaded.logits(ids))
        assert "".join(loaded.generate("Once", max_tokens=3, temperature=0.0)) is not None
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max() + 1e-6


def _state(model: NewModel, tied: bool) -> dict[str, torch.Tensor]:
    """The weights as transformers names and orders them: rotary pairs in halves, not as neighbours."""
    names = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    once = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    state = {}
    for name, x in model.weights.items():
        place, _, inner = name.removesuffix(".weight").rpartition(".")
        if inner in ("attn_q", "attn_k"):
            n_heads = 4 if inner == "attn_q" else 2
            x = x.reshape(n_heads, 8, 2, 64).swapaxes(1, 2).reshape(x.shape)
        layer = place.replace("blk.", "model.layers.")
        state[f"{layer}.{names[inner]}.weight" if place else f"{once[inner]}.weight"] = torch.tensor(x)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def test_other_programs_read_the_file(tmp_path: Path) -> None:
    model = made()
    model.write(tmp_path / "new.gguf")
    reader = gguf.GGUFReader(tmp_path / "new.gguf")
    assert reader.get_field("general.architecture").contents() == "llama"  # type: ignore[union-attr]
    assert reader.get_field("llama.block_count").contents() == 2  # type: ignore[union-attr]
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"  # type: ignore[union-attr]
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert found.keys() == model.weights.keys()
    assert all((found[name] == x).all() for name, x in model.weights.items())


def test_tensors_see_what_training_changes() -> None:
    model = made()
    tensors = model.tensors()
    for name, x in model.weights.items():
        x += np.float32(1)
        assert (tensors[name].dequantize() == x).all()
        assert tensors[name].address == x.ctypes.data


def test_a_template_that_is_malformed_is_refused_before_training() -> None:
    with pytest.raises(TemplateError):
        made(chat_template="{% for %}")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileProblem, match="cannot be written"):
        made().write(tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []
