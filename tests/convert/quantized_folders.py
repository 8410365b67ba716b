"""Tiny checkpoints whose linears are quantized, packed as the published forms say, and what their weights mean.

The packers stand here so that the tests need none of their makers' programs; they follow the layouts that GPTQModel,
AutoAWQ and compressed-tensors document.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from . import checkpoints
from .checkpoints import edit_json

Packed = tuple[dict[str, torch.Tensor], np.ndarray]  # the tensors of a linear by their last names, and its weights
LINEAR = re.compile(r"(.*\.(q|k|v|o|gate|up|down)_proj)\.weight$")
GROUP = 32


def quantize_folder(
    folder: Path, pack: Callable[[np.ndarray, str], Packed], config: dict[str, Any] | None, family: str = "llama"
) -> dict[str, np.ndarray]:
    """Save a tiny model with every linear packed; returns the weights that these mean, by the linear's name."""
    checkpoints.save(family, folder, torch.float16)
    tensors, meant = {}, {}
    for name, x in load_file(folder / "model.safetensors").items():
        match = LINEAR.match(name)
        if not match:
            tensors[name] = x
            continue
        packed, meant[name] = pack(x.float().numpy(), match[1])
        tensors |= {f"{match[1]}.{last}": y.contiguous() for last, y in packed.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        edit_json(folder / "config.json", quantization_config=config)
    return meant


def words(q: np.ndarray, bits: int) -> torch.Tensor:
    """int32 [n, n_in * bits / 32]: integers [n, n_in] as a dense run, the lowest bits first."""
    planes = (q[:, :, None].astype(np.int64) >> np.arange(bits)) & 1
    raw = np.packbits(planes.reshape(len(q), -1).astype(np.uint8), axis=1, bitorder="little")
    raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 4)))
    return torch.from_numpy(raw.view("<i4").copy())


def on_grid(
    w: np.ndarray, bits: int, symmetric: bool, group_of: np.ndarray, scale_type: type = np.float16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q [n_out, n_in], scales and zeros [n_out, n_groups]."""
    n_groups, most = int(group_of.max()) + 1, (1 << bits) - 1
    scales = np.empty((len(w), n_groups), scale_type)
    zeros = np.full((len(w), n_groups), 1 << (bits - 1))
    for group in range(n_groups):
        part = w[:, group_of == group]
        if symmetric:
            scales[:, group] = 2 * np.abs(part).max(1) / most
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scales[:, group] = (high - low) / most
            zeros[:, group] = np.clip(np.round(-low / scales[:, group].astype(np.float32)), 0, most)
    wide = scales.astype(np.float32)[:, group_of]
    return np.clip(np.round(w / wide) + zeros[:, group_of], 0, most).astype(np.int64), scales, zeros


def meaning(q: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    return scales.astype(np.float32)[:, group_of] * (q - zeros[:, group_of]).astype(np.float32)


def gptq(bits: int, symmetric: bool, form: str = "gptq", order: str = "none", group: int = GROUP) -> Any:
    """A packer for GPTQ. order: "none", "blocks" (groups shuffled as whole blocks), or "act" (scattered)."""

    def pack(w: np.ndarray, name: str) -> Packed:
        n_in = w.shape[1]
        group_of = np.arange(n_in) // (n_in if group == -1 else group)
        random = np.random.default_rng(7)
        if order == "blocks":
            group_of = random.permutation(group_of.reshape(-1, GROUP)).reshape(-1)
        elif order == "act":
            group_of = random.permutation(group_of)
        q, scales, zeros = on_grid(w, bits, symmetric, group_of)
        stored = (zeros - 1) & ((1 << bits) - 1) if form == "gptq" else zeros
        return {
            "qweight": words(q, bits).T,
            "qzeros": words(stored.T, bits),
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(group_of.astype(np.int32)),
        }, meaning(q, scales, zeros, group_of)

    return pack


def gptq_config(bits: int, form: str = "gptq", group: int = GROUP, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form, **more}


def awq(symmetric: bool, group: int = GROUP) -> Any:
    """A packer for AWQ: eight rows of the weight in a word, in an order of its own."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def in_words(x: np.ndarray) -> torch.Tensor:  # [n, n_out]
        parts = x.reshape(len(x), -1, 8)[:, :, order].astype(np.uint32)
        return torch.from_numpy((parts << np.arange(0, 32, 4, dtype=np.uint32)).sum(2).astype(np.uint32).view(np.int32))

    def pack(w: np.ndarray, name: str) -> Packed:
        group_of = np.arange(w.shape[1]) // group
        q, scales, zeros = on_grid(w, 4, symmetric, group_of)
        packed = {"qweight": in_words(q.T), "qzeros": in_words(zeros.T), "scales": torch.from_numpy(scales.T.copy())}
        return packed, meaning(q, scales, zeros, group_of)

    return pack


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
