"""Checkpoints of ModelOpt, and floats of four bits with two scales (NVFP4), of it and of compressed-tensors.

What ModelOpt 0.47 exports has these names, types and shapes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.quantized import unpacked
from edgellm.errors import EdgellmError
from edgellm.formats.checkpoint import open_checkpoint

from .checkpoints import edit_json
from .quantized_folders import Packed, quantize_folder
from .test_quantized import check, compressed_config

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def fp8(kind: str) -> Any:
    """kind: with one scale for a "tensor", or for each "channel"."""

    def pack(w: np.ndarray, name: str) -> Packed:
        x = torch.from_numpy(w)
        scale = (x.abs().amax(1) if kind == "channel" else x.abs().amax()) / 448
        wide = scale[:, None] if kind == "channel" else scale
        q = (x / wide).to(torch.float8_e4m3fn)
        packed = {"weight": q, "weight_scale": scale, "input_scale": torch.tensor(0.01)}
        return packed, (q.float() * wide).numpy()

    return pack


def int8(w: np.ndarray, name: str) -> Packed:
    scale = torch.from_numpy(np.abs(w).max(1) / np.float32(127))
    q = torch.from_numpy(w).div(scale[:, None]).round().to(torch.int8)
    return {"weight": q, "weight_scale": scale}, (q.float() * scale[:, None]).numpy()


def nvfp4(group: int = 16, *, of_modelopt: bool = True) -> Any:
    """compressed-tensors has the inverse of a tensor's scale."""

    def pack(w: np.ndarray, name: str) -> Packed:
        x = torch.from_numpy(w).reshape(len(w), -1, group)
        most = x.abs().amax(2)
        of_tensor = most.amax() / (6 * 448)
        inverse = 1 / of_tensor
        small = (most / 6 / of_tensor).to(torch.float8_e4m3fn)
        scale = small.float() * of_tensor if of_modelopt else small.float() / inverse
        wide = torch.where(scale > 0, scale, 1)[:, :, None]
        nearest = (x.abs() / wide)[..., None].sub(E2M1).abs().argmin(-1)
        q = (nearest + 8 * (x < 0)).reshape(len(w), -1).to(torch.uint8)
        both = q[:, ::2] | q[:, 1::2] << 4
        signs = torch.where(x < 0, -1.0, 1.0)
        meant = (signs * E2M1[nearest] * scale[:, :, None]).reshape(len(w), -1).numpy()
        if of_modelopt:
            packed = {"weight": both, "weight_scale_2": of_tensor, "input_scale": torch.tensor(0.01)}
        else:
            packed = {
                "weight_packed": both,
                "weight_global_scale": inverse.reshape(1),
                "input_global_scale": torch.ones(1),
            }
        return packed | {"weight_scale": small}, meant

    return pack


def config(algorithm: str) -> dict[str, Any]:
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "ignore": ["lm_head"],
        "producer": {"name": "modelopt"},
    }


@pytest.mark.parametrize(
    ("algorithm", "pack", "kind"),
    [
        ("FP8", fp8("tensor"), "FP8"),
        ("fp8_pb_wo", fp8("tensor"), "FP8"),  # what is no larger than a block has one scale
        ("FP8_PER_CHANNEL_PER_TOKEN", fp8("channel"), "FP8"),
        ("NVFP4", nvfp4(), "NVFP4"),
        ("W4A8_NVFP4_FP8", nvfp4(32), "NVFP4"),
        ("MIXED_PRECISION", nvfp4(), "NVFP4"),
    ],
)
def test_floats(algorithm: str, pack: Any, kind: str, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", pack, config(algorithm))
    check(tmp_path / "model", meant, "F32", type_name="F32")
    notes = check(tmp_path / "model", meant, "BF16", 2.0**-8)
    assert notes[0].startswith(f"ModelOpt: GGUF has no type for {kind}: ")
    assert len(notes) == 2 and notes[1].startswith("ModelOpt: left out 21 tensors of scales of activations: ")


def test_integers(tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", int8, config("W8A16"))
    check(tmp_path / "model", meant, "Q8_0", 2.0**-11)


def test_a_folder_whose_config_json_does_not_say_so(tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", fp8("tensor"), None)
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
    (tmp_path / "model" / "hf_quant_config.json").write_text(json.dumps(said))
    check(tmp_path / "model", meant, "F32", type_name="F32")


def test_nvfp4_of_compressed_tensors(tmp_path: Path) -> None:
    settings = compressed_config("nvfp4-pack-quantized")
    meant = quantize_folder(tmp_path / "model", nvfp4(of_modelopt=False), settings)
    check(tmp_path / "model", meant, "F32", type_name="F32")
    (note, _) = check(tmp_path / "model", meant, "BF16", 2.0**-8)
    assert note.startswith("compressed-tensors: GGUF has no type for NVFP4: ")


def test_nvfp4_means_what_compressed_tensors_makes_of_it() -> None:
    """By its own decompressor."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16)
    packed, meant = nvfp4(of_modelopt=False)(np.random.default_rng(0).normal(0, 1, (32, 64)).astype(np.float32), "")
    compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    theirs = compressor.decompress({**packed}, QuantizationScheme(targets=["Linear"], weights=args))["weight"]
    np.testing.assert_allclose(meant, theirs.float().numpy(), rtol=2**-8)  # it makes bfloat16


def test_blocks_that_end_within_a_matrix(tmp_path: Path) -> None:
    """Of 128 rows and columns, the last ones smaller."""
    random = np.random.default_rng(1)
    q = torch.from_numpy(random.normal(0, 100, (192, 320)).astype(np.float32)).to(torch.float8_e4m3fn)
    scales = torch.from_numpy(random.uniform(0.5, 2, (2, 1, 3, 1)).astype(np.float32))
    save_file({"m.weight": q, "m.weight_scale": scales}, tmp_path / "model.safetensors")
    wide = scales[:, 0, :, 0].repeat_interleave(128, 0).repeat_interleave(128, 1)[:192, :320]
    with open_checkpoint(tmp_path) as checkpoint:
        arrays, notes = unpacked(checkpoint, config("FP8_PB_WO"), as_it_is=False)
        np.testing.assert_array_equal(arrays.floats["m.weight"].dequantize(), (q.float() * wide).numpy())
        assert notes == []


@pytest.mark.parametrize(
    ("algorithm", "changes", "said"),
    [
        ("W4A16_AWQ", {}, r"ModelOpt: its quant_algo is 'W4A16_AWQ'; edgellm converts FP8, "),
        (None, {}, r"ModelOpt: it does not say how the weights are quantized \(quant_algo\)"),
        (["FP8"], {}, r"ModelOpt: its quant_algo is \['FP8'\]; edgellm converts"),
        (
            "NVFP4",
            {"pre_quant_scale": torch.ones(64)},
            r"inputs of '.*up_proj' are scaled \(pre_quant_scale\)",
        ),
        ("NVFP4", {"weight_scale": torch.ones(3, 4).to(torch.float8_e4m3fn)}, r"do not belong together"),
        (
            "NVFP4",
            {"weight_scale_2": torch.tensor(torch.inf)},
            r"up_proj.weight_scale_2' holds NaN or infinity",
        ),
        (
            "NVFP4",
            {"weight_scale": torch.full((96, 4), torch.nan).to(torch.float8_e4m3fn)},
            r"scales of .* are not finite",
        ),
        ("NVFP4", {"weight_scale_2": torch.ones(2)}, r"do not belong together"),
        (
            "NVFP4",
            {"weight": torch.zeros(96, 0, dtype=torch.uint8)},
            r"weight' is of shape \[96, 0\]: it has no",
        ),
        ("NVFP4", {"weight_scale": torch.ones(3, 4)}, r"up_proj.weight_scale' is F32; expected F8_E4M3"),
        ("NVFP4", {"weight_scale_2": None}, r"up_proj.weight"),
    ],
)
def test_what_is_refused(algorithm: Any, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    quantize_folder(folder, nvfp4(), {**config("NVFP4"), "quant_algo": algorithm})
    tensors = load_file(folder / "model.safetensors")
    changed = {f"model.layers.0.mlp.up_proj.{last}": tensor for last, tensor in changes.items()}
    kept = {name: tensor for name, tensor in {**tensors, **changed}.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EdgellmError, match=said) as error:
        convert(folder, tmp_path / "out.gguf")
    assert "\n" not in str(error.value) and not (tmp_path / "out.gguf").exists()


def test_where_it_is_said_twice_config_json_counts(tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", fp8("tensor"), config("FP8"))
    (tmp_path / "model" / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "W4A16_AWQ"}}')
    check(tmp_path / "model", meant, "F32", type_name="F32")
    edit_json(tmp_path / "model" / "config.json", quantization_config=...)
    with pytest.raises(EdgellmError, match="its quant_algo is 'W4A16_AWQ'"):
        convert(tmp_path / "model", tmp_path / "out.gguf")
