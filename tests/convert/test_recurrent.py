"""Checkpoints with recurrent layers: the names and the order of llama.cpp, and parts that a text has no use for."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers as t
from safetensors.numpy import load_file, save_file

import edgellm
from edgellm.arch import ARCHITECTURES
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.huggingface import read_huggingface
from edgellm.convert.parts import Part, with_columns
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS

from . import checkpoints, families, mixtures

FLOAT32 = 1e-4
SHARED = "qwen35, shared keys, every other layer"


def saved(name: str, folder: Path) -> Path:
    if name in families.FAMILIES:
        families.model_of(name).save_pretrained(folder)
        checkpoints.tokenizer().save_pretrained(folder)
    else:
        checkpoints.save(name, folder)
    return folder


@pytest.mark.parametrize("name", ["lfm2", "lfm2moe", "qwen3next", "qwen35", "qwen35moe"])
def test_names_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    assert name in families.FAMILIES or name in mixtures.MIXTURES
    convert(saved(name, tmp_path / "model"), tmp_path / "model.gguf")
    kind = next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    known = {gguf.TENSOR_NAMES[part] for part in gguf.MODEL_TENSORS[kind]}
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        for tensor in file.tensors:
            plain = re.sub(r"^blk\.\d+\.", "blk.{bid}.", tensor)
            assert plain in known or plain.rpartition(".")[0] in known, tensor
        keys = {key.removeprefix(f"{name}.") for key in file.metadata if key.startswith(f"{name}.")}
    wanted = {"shortconv.l_cache"} if name.startswith("lfm2") else {
        "ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size",
        "full_attention_interval", "attention.recurrent_layers", "rope.dimension_count",
    } | ({"rope.dimension_sections"} if name != "qwen3next" else set())  # fmt: skip
    assert wanted <= keys


def test_a_model_that_also_sees_and_foresees(tmp_path: Path) -> None:
    """Both are left out, and that is said; the text part is what it was."""
    _, config_class, changes = families.FAMILIES["qwen35"]
    text = config_class(**(families._SHAPE | changes)).to_dict()
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
              "num_position_embeddings": 16}  # fmt: skip
    torch.manual_seed(2)
    model = t.Qwen3_5ForConditionalGeneration(t.Qwen3_5Config(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(tmp_path / "model")
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["mtp.fc.weight"] = np.ones((64, 128), np.float32)
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    notes = convert(tmp_path / "model", tmp_path / "model.gguf")
    assert any("image and audio parts" in note for note in notes)
    assert any("left out 1 tensors of the layers that foresee" in note for note in notes)
    ids = list(range(2, 80))
    with torch.no_grad():
        expected = model.double()(torch.tensor([ids])).logits[0].numpy()
    with edgellm.load(tmp_path / "model.gguf", n_threads=1, kv_type="f32", activations="f32") as loaded:
        np.testing.assert_allclose(loaded.logits(ids), expected, atol=FLOAT32)


def test_which_layers_are_recurrent_is_said_for_each(tmp_path: Path) -> None:
    """As llama.cpp writes it, whose files then say the interval that is usual."""
    folder = saved("qwen35, attention in odd layers", tmp_path / "model")
    source = read_huggingface(folder)
    said = [False, True, True, False]
    assert source.metadata["qwen35.attention.recurrent_layers"] == said
    configure = ARCHITECTURES["qwen35"].configure
    assert configure({**source.metadata, "qwen35.full_attention_interval": 4}).recurrent.layers == tuple(said)
    older = {key: value for key, value in source.metadata.items() if key != "qwen35.attention.recurrent_layers"}
    assert configure({**older, "qwen35.full_attention_interval": 4}).recurrent.layers == (True, True, True, False)
    with pytest.raises(FormatError, match=r"recurrent_layers is .*; expected a number, or a bool for each of 4 layers"):
        configure({**source.metadata, "qwen35.attention.recurrent_layers": [True]})
    source.close()
    for kind in ("sliding_attention", ["linear_attention"]):
        checkpoints.edit_json(folder / "config.json", layer_types=[kind] * 4)
        with pytest.raises(UnsupportedError, match="edgellm runs linear_attention, full_attention"):
            convert(folder, tmp_path / "model.gguf")


def test_the_first_files_of_qwen_3_next(tmp_path: Path) -> None:
    """They have what makes queries, keys, values and gates as the checkpoint has it, in one matrix."""
    convert(saved("qwen3next", tmp_path / "model"), tmp_path / "model.gguf")
    theirs = load_file(tmp_path / "model" / "model.safetensors")
    f32, entries = FORMATS["F32"], []
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        for name, tensor in file.tensors.items():
            block, _, part = name.rpartition(".weight")[0].rpartition(".")
            if part == "attn_qkv":
                whole = theirs[block.replace("blk.", "model.layers.") + ".linear_attn.in_proj_qkvz.weight"]
                entries.append((f"{block}.ssm_in.weight", whole.shape, f32, whole.view(np.uint8)))
            elif part != "attn_gate":
                entries.append((name, tensor.shape, tensor.format, tensor.raw))
        GGUFWriter(tmp_path / "first.gguf", file.metadata, entries).write()
    ids = list(range(2, 80))
    found = []
    for name in ("model.gguf", "first.gguf"):
        with edgellm.load(tmp_path / name, n_threads=1, kv_type="f32", activations="f32") as loaded:
            found.append(loaded.logits(ids))
    np.testing.assert_array_equal(*found)
    with torch.no_grad():
        expected = checkpoints.load(tmp_path / "model").double()(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found[0], expected, atol=FLOAT32)


@pytest.mark.parametrize(("name", "has"), [("qwen35", True), (SHARED, False)])
def test_adapters_of_what_has_another_order_have_no_place(name: str, has: bool, tmp_path: Path) -> None:
    source = read_huggingface(saved(name, tmp_path / "model"))
    architecture = ARCHITECTURES["qwen35"]
    names = architecture.hugging_face[0].naming(architecture.configure(source.metadata)).names
    assert ("blk.0.ssm_out.weight" in names) == has
    assert "blk.0.ssm_alpha.weight" in names and "blk.0.ssm_a" not in names
    source.close()


def test_columns_in_another_order() -> None:
    x = np.random.default_rng(3).standard_normal((4, 128), np.float32)
    order = np.concatenate([np.arange(64, 128), np.arange(64)]).astype(np.int32)
    for fmt in (FORMATS["F32"], FORMATS["Q8_0"]):
        tensor = Tensor("w", x.shape, fmt, fmt.quantize(x))
        part = with_columns(Part("w", tensor), order)
        wanted = tensor.dequantize()[1:3, order]
        np.testing.assert_array_equal(fmt.dequantize(part.raw(slice(1, 3))).reshape(wanted.shape), wanted)
    with pytest.raises(UnsupportedError, match="blocks of 32 that reach across"):
        with_columns(Part("w", tensor), np.roll(np.arange(128, dtype=np.int32), 16))
