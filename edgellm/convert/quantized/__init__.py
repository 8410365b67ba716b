"""Checkpoints that are quantized already, as tensors that can be written into a GGUF file.

Where a type of GGUF has the very grid of the checkpoint, its integers are taken over as they are; where none has, the
weights become floats, and what is lost is told (`grids.py`, `losses.py`). There is a file for each maker's form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.awq import unpack_awq
from edgellm.convert.quantized.bitsandbytes import unpack_bitsandbytes
from edgellm.convert.quantized.compressed import unpack_compressed, unpack_plain
from edgellm.convert.quantized.gptq import unpack_gptq
from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.modelopt import unpack_modelopt
from edgellm.convert.quantized.mxfp4 import unpack_mxfp4
from edgellm.errors import FileProblem, FormatError, UnsupportedError, shown
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.json_file import read_json
from edgellm.formats.settings import Settings

Unpack = Callable[[Arrays, Settings, bool, Losses], None]

METHODS: dict[str, tuple[str, Unpack]] = {
    "gptq": ("GPTQ", unpack_gptq),
    "awq": ("AWQ", unpack_awq),
    "bitsandbytes": ("bitsandbytes", unpack_bitsandbytes),
    "compressed-tensors": ("compressed-tensors", unpack_compressed),
    "fp8": ("FP8", unpack_plain),
    "fbgemm_fp8": ("FP8", unpack_plain),
    "mxfp4": ("MXFP4", unpack_mxfp4),
    "modelopt": ("ModelOpt", unpack_modelopt),
}
# Where config.json says it, and where folders of the first years, and of some makers, say it instead.
_KEYS = ("quantization_config", "compression_config")
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}


def quantization_of(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """What a folder says of how its weights are quantized, with its quant_method; None if they are not.

    Raises FormatError.
    """
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        for key in _KEYS:
            if found := place.get(key):
                if not isinstance(found, dict):
                    raise FormatError(f"config.json: {key} is {found!r:.60}; expected an object")
                by_bits = "bitsandbytes" if found.get("load_in_4bit") or found.get("load_in_8bit") else None
                return {"quant_method": by_bits, **found} if found.get("quant_method") is None else found
    for name, method in _FILES.items():
        if (folder / name).is_file():
            return {"quant_method": method, **read_json(folder / name)}
    return None


def is_quantized(folder: Path) -> bool:
    """Whether a checkpoint says that it is; False for a folder that cannot be read."""
    try:
        return quantization_of(folder, read_json(folder / "config.json")) is not None
    except FileProblem:
        return False


def unpacked(checkpoint: Checkpoint, quantization: dict[str, Any], as_it_is: bool) -> tuple[Arrays, list[str]]:
    """The tensors of a checkpoint with weights in the place of what is quantized, and notes on what is lost.

    as_it_is:  in types that keep the checkpoint's grid where there are such; otherwise exactly, in float32, for
               whoever makes another type of them.

    Raises FormatError, and UnsupportedError for what nobody here can unpack.
    """
    method, known = quantization.get("quant_method"), ", ".join(METHODS)
    if method is None:
        raise FormatError(
            "config.json: quantization_config does not say how the weights are quantized (quant_method); expected "
            f"{known}; if they are floats, take quantization_config out"
        )
    if not isinstance(method, str) or method not in METHODS:
        raise UnsupportedError(
            f"config.json: the checkpoint is quantized already ({shown(method, 40)}); edgellm converts {known}: "
            "convert the original instead"
        )
    kind, unpack = METHODS[method]
    arrays, losses = Arrays(checkpoint.tensors, checkpoint.plain, checkpoint.others), Losses(kind)
    try:
        unpack(arrays, Settings(quantization, file="config.json: quantization_config"), as_it_is, losses)
    except FileProblem as problem:
        raise type(problem)(f"{kind}: {problem}") from None
    told = losses.told()
    if not arrays.has_unpacked and quantization.get("format") != "dense":
        told.append(
            f"config.json says that the weights are quantized ({kind}), and none of them is: the floats of the "
            "checkpoint are read as they are; one of the two may be of another model"
        )
    return arrays, told
