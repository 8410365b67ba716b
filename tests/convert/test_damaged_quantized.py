"""Quantized checkpoints with a part that is missing, empty, or of another shape, type or range.

They make weights or one clear error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgellm.convert.quantized import unpacked
from edgellm.errors import EdgellmError
from edgellm.formats.checkpoint import open_checkpoint

from . import test_modelopt as modelopt
from .quantized_folders import AWQ, Packed, awq, gptq, gptq_config
from .test_bitsandbytes import bnb_int8, bnb_table
from .test_quantized import compressed, compressed_config, fp8


def mxfp4(w: np.ndarray, name: str) -> Packed:
    random = np.random.default_rng(3)
    parts = {"weight_blocks": (2, len(w), 2, 16), "weight_scales": (2, len(w), 2)}
    return {last: torch.from_numpy(random.integers(100, 140, shape, np.uint8)) for last, shape in parts.items()}, w


def of_compressed_tensors(form: str, **weights: Any) -> tuple[Any, dict[str, Any]]:
    return compressed(form=form, **weights), compressed_config(form)


def of_bitsandbytes(kind: str, nested: bool) -> tuple[Any, dict[str, Any]]:
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return bnb_table(kind, nested), settings


FORMS = {
    "gptq, symmetric": lambda: (gptq(4, True), gptq_config(4)),
    "gptq, asymmetric": lambda: (gptq(8, False), gptq_config(8)),
    "awq, symmetric": lambda: (awq(True), AWQ),
    "awq, asymmetric": lambda: (awq(False), AWQ),
    "bitsandbytes, nested": lambda: of_bitsandbytes("nf4", nested=True),
    "bitsandbytes": lambda: of_bitsandbytes("fp4", nested=False),
    "bitsandbytes, int8": lambda: (bnb_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "packed": lambda: of_compressed_tensors(
        "pack-quantized", num_bits=4, symmetric=False, strategy="group", group_size=32
    ),
    "int8": lambda: of_compressed_tensors("int-quantized", num_bits=8, symmetric=True, strategy="channel"),
    "float8": lambda: of_compressed_tensors(
        "float-quantized", num_bits=8, type="float", symmetric=True, strategy="channel"
    ),
    "float8 in blocks": lambda: (fp8(40), {"quant_method": "fp8", "weight_block_size": [40, 40]}),
    "nvfp4": lambda: (modelopt.nvfp4(of_modelopt=False), compressed_config("nvfp4-pack-quantized")),
    "modelopt, fp8": lambda: (modelopt.fp8("channel"), modelopt.config("FP8")),
    "modelopt, nvfp4": lambda: (modelopt.nvfp4(), modelopt.config("NVFP4")),
    "modelopt, int8": lambda: (modelopt.int8, modelopt.config("W8A16")),
    "mxfp4": lambda: (mxfp4, {"quant_method": "mxfp4"}),
}


def damaged(part: torch.Tensor) -> Iterator[torch.Tensor | None]:
    """The part in many wrong ways; None is without it."""
    yield None
    for dim, n in enumerate(part.shape):
        yield part.narrow(dim, 0, 0)
        yield part.narrow(dim, 0, n - 1)
        yield part.repeat_interleave(2, dim) if part.dtype != torch.float8_e4m3fn else part.narrow(dim, 0, 1)
    yield from (part.reshape(-1)[0], part.reshape(-1), part[None], part[..., None])
    yield from (part.float().to(dtype) for dtype in (torch.float32, torch.int8, torch.int64, torch.bool))
    if part.is_floating_point():
        yield torch.full(part.shape, torch.nan).to(part.dtype)
    else:
        limits = torch.iinfo(part.dtype)
        yield from (torch.full(part.shape, limit, dtype=part.dtype) for limit in (limits.min, limits.max))


@pytest.mark.parametrize("form", FORMS)
def test_each_part_of_a_linear_in_many_wrong_ways(form: str, tmp_path: Path) -> None:
    pack, config = FORMS[form]()
    parts, _ = pack(np.random.default_rng(0).normal(0, 1, (64, 64)).astype(np.float32), "m")
    n_refused = 0
    for last, part in parts.items():
        for changed in damaged(part):
            kept = {f"m.{name}": tensor.clone() for name, tensor in parts.items() if name != last}
            if changed is not None:
                kept[f"m.{last}"] = changed.clone()
            save_file({name: tensor.contiguous() for name, tensor in kept.items()}, tmp_path / "model.safetensors")
            n_refused += sum(is_refused(tmp_path, config, as_it_is) for as_it_is in (False, True))
    assert n_refused > 8 * len(parts)


def is_refused(folder: Path, config: dict[str, Any], as_it_is: bool) -> bool:
    """Whether what a folder holds is no linear; else all its weights can be computed."""
    try:
        with open_checkpoint(folder) as checkpoint:
            for tensor in unpacked(checkpoint, config, as_it_is)[0].floats.values():
                assert tensor.dequantize().shape == tensor.shape
    except EdgellmError as error:
        assert "\n" not in str(error), str(error)
        return True
    return False
