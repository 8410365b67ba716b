"""GPTQ and AWQ folders as Auto-Round writes them: its packers and what it makes of them again, beside ours.

The packers of `quantized_folders.py` are this project's own, by the published forms. These here are the field's.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from .quantized_folders import AWQ, GROUP, Packed, awq, gptq, gptq_config, meaning, on_grid, quantize_folder
from .test_quantized import HALF, check

pytest.importorskip("auto_round")

# Which of its packers writes which form: the first stores zeros less one.
GPTQ = {"gptq": "auto_round_extension.torch.qlinear_torch_zp", "gptq_v2": "auto_round_extension.torch.qlinear_torch"}


def _on_grid(w: np.ndarray, bits: int, symmetric: bool) -> tuple[torch.nn.Linear, Any, Any, np.ndarray]:
    """A linear whose weights are on a grid, the scales and zeros of that, and the weights."""
    group_of = np.arange(w.shape[1]) // GROUP
    q, scales, zeros = on_grid(w, bits, symmetric, group_of)
    meant = meaning(q, scales, zeros, group_of)
    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = torch.from_numpy(meant)
    return linear, torch.from_numpy(scales), torch.from_numpy(zeros), meant


def field_gptq(bits: int, symmetric: bool, form: str) -> Any:
    kind = importlib.import_module(GPTQ[form]).QuantLinear

    def pack(w: np.ndarray, name: str) -> Packed:
        linear, scales, zeros, meant = _on_grid(w, bits, symmetric)
        layer = kind(bits, GROUP, w.shape[1], w.shape[0], False)
        layer.device = "cpu"
        layer.pack(linear, scales.float(), zeros.float() if not symmetric else 1 << (bits - 1), None, device="cpu")
        np.testing.assert_allclose(_made_of(layer, w.shape[1]), meant, atol=2 * HALF * np.abs(meant).max())
        return {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}, meant

    return pack


def _made_of(layer: torch.nn.Module, n_in: int) -> np.ndarray:
    """The weights that a layer multiplies by, in its own float16."""
    with torch.no_grad():
        return layer(torch.eye(n_in, dtype=torch.float16)).T.float().numpy()


def field_awq(symmetric: bool) -> Any:
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm

    def pack(w: np.ndarray, name: str) -> Packed:
        linear, scales, zeros, meant = _on_grid(w, 4, symmetric)
        layer = WQLinear_GEMM.from_linear(
            linear, 4, GROUP, scales=scales.float().T.contiguous(), zeros=zeros.T.contiguous(), device="cpu"
        )
        theirs = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, GROUP).T.float().numpy()
        np.testing.assert_allclose(theirs, meant, atol=2 * HALF * np.abs(meant).max())
        return {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}, meant

    return pack


@pytest.mark.parametrize("form", list(GPTQ))
@pytest.mark.parametrize(("bits", "type_name"), [(2, "Q4_0"), (4, "Q4_0"), (8, "Q8_0")])
def test_symmetric_gptq_keeps_every_bit(bits: int, type_name: str, form: str, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", field_gptq(bits, True, form), gptq_config(bits, form))
    assert check(tmp_path / "model", meant, type_name) == []


@pytest.mark.parametrize("form", list(GPTQ))
def test_asymmetric_gptq_rounds_only_its_minima(form: str, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", field_gptq(4, False, form), gptq_config(4, form))
    check(tmp_path / "model", meant, "Q4_1", HALF)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(symmetric: bool, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", field_awq(symmetric), {**AWQ, "zero_point": not symmetric})
    check(tmp_path / "model", meant, "Q4_0" if symmetric else "Q4_1", HALF)


@pytest.mark.parametrize("symmetric", [True, False])
def test_our_own_packers_write_the_same_words(symmetric: bool) -> None:
    w = np.random.default_rng(3).standard_normal((64, 96)).astype(np.float32)
    pairs = [(gptq(4, symmetric, form), field_gptq(4, symmetric, form)) for form in GPTQ]
    for ours, theirs in [*pairs, (awq(symmetric), field_awq(symmetric))]:
        one, other = ours(w, "x")[0], theirs(w, "x")[0]
        for name in other:
            assert torch.equal(one[name].to(other[name].dtype), other[name]), name
