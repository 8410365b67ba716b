"""Experts in MXFP4, as gpt-oss is published: every number arrives as transformers reads it, in GGUF's own type."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.errors import EdgellmError
from edgellm.formats.gguf import GGUFFile

from . import checkpoints
from .checkpoints import edit_json

N_EXPERTS, N_EMBD, N_FF = 8, 64, 96
SHAPES = {"gate_up_proj": (2 * N_FF, N_EMBD), "down_proj": (N_EMBD, N_FF)}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
EXPERTS = re.compile(r"model\.layers\.\d\.mlp\.experts\.(gate_up_proj|down_proj)$")
Tensors = dict[str, torch.Tensor]


def packed(folder: Path) -> Tensors:
    """Save a tiny gpt-oss whose experts are any bytes, with exponents that are not far; returns what these mean.

    float32 [n_experts, n_in, n_out], as transformers has them.
    """
    checkpoints.save("gpt-oss", folder, torch.bfloat16)
    generator, path = torch.Generator().manual_seed(7), folder / "model.safetensors"
    tensors: Tensors = {}
    meant: Tensors = {}
    for name, x in load_file(path).items():
        if not (match := EXPERTS.match(name)):
            tensors[name] = x
            continue
        n_out, n_in = SHAPES[match[1]]
        shape = (N_EXPERTS, n_out, n_in // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 124, shape, generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        meant[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, path, {"format": "pt"})
    edit_json(folder / "config.json", quantization_config=MXFP4)
    return meant


def of_gguf(name: str, x: torch.Tensor) -> dict[str, np.ndarray]:
    """What GGUF calls the matrices of a layer's experts: float32 [n_experts, n_out, n_in]."""
    layer, across = name.split(".")[2], x.transpose(1, 2).numpy()
    if name.endswith("down_proj"):
        return {f"blk.{layer}.ffn_down_exps.weight": across}
    return {f"blk.{layer}.ffn_{part}_exps.weight": across[:, i::2] for i, part in enumerate(("gate", "up"))}


def test_nothing_is_lost(tmp_path: Path) -> None:
    """As edgellm reads it, and the gguf package, which knows nothing of it; the model says what these weights mean."""
    meant = packed(tmp_path / "model")
    assert convert(tmp_path / "model", tmp_path / "out.gguf") == []
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        for theirs, x in meant.items():
            for name, expected in of_gguf(theirs, x).items():
                assert file.tensors[name].format.name == "MXFP4"
                np.testing.assert_array_equal(file.tensors[name].dequantize(), expected, err_msg=name)
                again = gguf.quants.dequantize(reader[name].data, gguf.GGMLQuantizationType.MXFP4)
                np.testing.assert_array_equal(again.reshape(expected.shape), expected, err_msg=name)
                # ggml adds biases of experts in float32 alone.
                assert file.tensors[name.replace("weight", "bias")].format.name == "F32"
        assert file.tensors["blk.0.attn_q.weight"].format.name == "BF16"

    model = checkpoints.save("gpt-oss", tmp_path / "plain", torch.bfloat16).double()
    with torch.no_grad():
        for name, x in meant.items():
            model.get_parameter(name).copy_(x)
    ids = list(range(2, 60))
    with edgellm.load(tmp_path / "out.gguf", n_threads=1, kv_type="f32", activations="f32") as loaded:
        np.testing.assert_allclose(loaded.logits(ids), checkpoints.logits(model, ids), atol=1e-4)


def test_a_type_that_is_named_is_made(tmp_path: Path) -> None:
    meant = packed(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out.gguf", "F32")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        for theirs, x in meant.items():
            for name, expected in of_gguf(theirs, x).items():
                np.testing.assert_array_equal(file.tensors[name].dequantize(), expected, err_msg=name)
    convert(tmp_path / "model", tmp_path / "small.gguf", "Q4_0")
    with GGUFFile.open(tmp_path / "small.gguf") as file:
        assert file.tensors["blk.2.ffn_up_exps.weight"].format.name == "Q4_0"


@pytest.mark.parametrize("part", ["blocks", "scales"])
@pytest.mark.parametrize("damage", ["missing", "type", "short", "experts"])
def test_parts_that_do_not_belong_together(part: str, damage: str, tmp_path: Path) -> None:
    packed(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.1.mlp.experts.down_proj_{part}"
    if damage == "missing":
        del tensors[name]
    elif damage == "type":
        tensors[name] = tensors[name].to(torch.int32)
    elif damage == "short":
        tensors[name] = tensors[name][:, :-1].contiguous()
    else:
        for both in ("blocks", "scales"):
            name = f"model.layers.1.mlp.experts.down_proj_{both}"
            tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(EdgellmError, match="down_proj") as caught:
        convert(tmp_path / "model", tmp_path / "out.gguf")
    assert "\n" not in str(caught.value) and not (tmp_path / "out.gguf").exists()
