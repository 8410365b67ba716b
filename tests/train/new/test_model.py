"""New models: their first weights, and files that run at once."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgellm
from edgellm.convert.quantize import quantize_file
from edgellm.errors import FileProblem, TemplateError
from edgellm.train.new.model import NewModel, first_weights, new_model
from edgellm.train.new.shape import Shape, ShapeSettings
from edgellm.train.new.vocabulary import KINDS, TokenizerSettings, learn_vocabulary

from .llama import as_transformers

ORDINARY = (resources.files("edgellm.evaluate") / "ordinary.txt").read_text("utf-8")
SHAPE = ShapeSettings(n_layers=2, n_embd=64, n_heads=4, n_kv_heads=2, n_ff=100, n_ctx=64).shape()


MIXTURE = ShapeSettings(n_layers=2, n_embd=64, n_heads=4, n_kv_heads=2, n_ctx=64, n_experts=4, n_expert_ff=32).shape()


def made(kind: str = "bpe", tied: bool = True, shape: Shape = SHAPE, **settings: Any) -> NewModel:
    vocabulary = learn_vocabulary(TokenizerSettings(kind, 400, **settings), [ORDINARY])
    return new_model("made", replace(shape, tied_embeddings=tied), vocabulary, seed=1)


def test_first_weights_are_drawn_as_said() -> None:
    settings = ShapeSettings(n_layers=8, n_embd=256, tied_embeddings=False)
    dense, mixed = (replace(settings, n_experts=n).shape() for n in (None, 8))
    weights = first_weights(mixed, 1000, seed=5) | first_weights(dense, 1000, seed=5)
    assert {"blk.0.ffn_down.weight", "blk.0.ffn_down_exps.weight", "blk.0.ffn_gate_inp.weight"} <= weights.keys()
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in weights.values())
    for name, x in weights.items():
        if x.ndim == 1:
            assert (x == 1).all(), name
            continue
        is_added = "attn_output" in name or "ffn_down" in name
        expected = 0.02 / math.sqrt(16) if is_added else 0.02
        few = 0.1 if "gate_inp" in name else 0.02  # a router has few numbers
        assert abs(x.std() / expected - 1) < few and abs(x.mean()) < few * expected, name


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
    theirs = as_transformers(model, replace(SHAPE, tied_embeddings=tied))
    with edgellm.load(tmp_path / "new.gguf", activations="f32", kv_type="f32", n_threads=1) as loaded:
        ids = loaded.tokenize("The weather, it's said,", add_special=True)
        ours = np.asarray(loaded.logits(ids))
        assert "".join(loaded.generate("Once", max_tokens=3, temperature=0.0)) is not None
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max() + 1e-6


def test_a_model_with_experts_runs_at_once_and_is_quantized(tmp_path: Path) -> None:
    """As transformers computes it; routers stay floats, and it chats."""
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    model = made(shape=MIXTURE, chat_template=template)
    model.write(tmp_path / "new.gguf")
    theirs = as_transformers(model, MIXTURE)
    ids = [3, 200, 17, 5, 399, 80]
    with edgellm.load(tmp_path / "new.gguf", activations="f32", kv_type="f32", n_threads=1) as loaded:
        ours = np.asarray(loaded.logits(ids))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max() + 1e-6
    quantize_file(tmp_path / "new.gguf", tmp_path / "small.gguf", "Q4_0")
    with edgellm.load(tmp_path / "small.gguf", n_threads=1) as loaded:
        formats = {name.split(".", 2)[-1]: tensor.format.name for name, tensor in loaded._runner.tensors.items()}
        assert formats["ffn_gate_inp.weight"] == "F32" and formats["ffn_gate_exps.weight"] == "Q4_0"
        assert isinstance("".join(loaded.chat([{"role": "user", "content": "Hi"}], max_tokens=3)), str)


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


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_transformers_reads_the_file(kind: str, tmp_path: Path) -> None:
    made(kind).write(tmp_path / "new.gguf")
    source = {"pretrained_model_name_or_path": tmp_path, "gguf_file": "new.gguf"}
    theirs = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    text = "It's the 3rd of May — naïve?\n\n  x"
    with edgellm.load(tmp_path / "new.gguf", activations="f32", kv_type="f32", n_threads=1) as loaded:
        ids = loaded.tokenize(text, add_special=True)
        ours = np.asarray(loaded.logits(ids))
    assert AutoTokenizer.from_pretrained(**source)(text)["input_ids"] == ids
    with torch.no_grad():
        assert np.abs(theirs(torch.tensor([ids])).logits[0].numpy() - ours).max() < 1e-5


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
