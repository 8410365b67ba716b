"""Checkpoints of bitsandbytes: what its own dequantizer says they mean arrives, in whatever bytes they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from .quantized_folders import quantize_folder
from .test_quantized import HALF, check


def bnb_table(kind: str, nested: bool) -> Any:
    functional = pytest.importorskip("bitsandbytes.functional")

    def pack(w: np.ndarray, name: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        x = torch.from_numpy(w).half()
        # Its dequantizer for CPUs takes rows that are whole blocks only; those of a file are one run anyway.
        flat = x.reshape(-1, 64)
        q, state = functional.quantize_4bit(flat, blocksize=64, compress_statistics=nested, quant_type=kind)
        meant = functional.dequantize_4bit(q, state).float().numpy().reshape(w.shape)
        state.shape = x.shape
        parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {"weight": q, **parts}, meant

    return pack


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4_bits(kind: str, nested: bool, tmp_path: Path) -> None:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    meant = quantize_folder(tmp_path / "model", bnb_table(kind, nested), config)
    (note,) = check(tmp_path / "model", meant, "F16", 2 * HALF)
    assert f"bitsandbytes: no type of GGUF has the levels of {kind}: model.layers.0" in note
    check(tmp_path / "model", meant, "Q8_0", 0.01, type_name="Q8_0")


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float32])
def test_bitsandbytes_4_bits_in_bytes_of_floats(storage: torch.dtype, tmp_path: Path) -> None:
    """As QLoRA saves them where weights are shared out as floats (bnb_4bit_quant_storage)."""
    plain = bnb_table("nf4", nested=True)

    def pack(w: np.ndarray, name: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        packed, meant = plain(w, name)
        return packed | {"weight": packed["weight"].reshape(-1).view(storage).reshape(-1, 1)}, meant

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    meant = quantize_folder(tmp_path / "model", pack, config)
    check(tmp_path / "model", meant, "F16", 2 * HALF)


def bnb_int8(w: np.ndarray, name: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    functional = pytest.importorskip("bitsandbytes.functional")
    q, scales, _ = functional.int8_vectorwise_quant(torch.from_numpy(w).half())
    meant = functional.int8_vectorwise_dequant(q, scales).float().numpy()
    return {"weight": q, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}, meant


def test_bitsandbytes_8_bits(tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", bnb_int8, {"load_in_8bit": True})
    (note,) = check(tmp_path / "model", meant, "Q8_0", HALF)
    assert note.startswith("bitsandbytes: scales of 21 matrices are rounded to float16")
    check(tmp_path / "model", meant, "F32", 1e-6, type_name="F32")
