"""Checkpoints of NVIDIA's ModelOpt. What a weight is, its type and its scales say.

FP8    weight in E4M3; weight_scale float32 [], [n_out], or [blocks, 1, blocks, 1] for blocks of 128 x 128
NVFP4  weight uint8, weight_scale in E4M3, weight_scale_2 float32 (see `nvfp4.py`)
INT8   weight int8, weight_scale float32 [n_out]
"""

from __future__ import annotations

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.compressed import unpack_bytes
from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.nvfp4 import unpack_nvfp4
from edgellm.errors import FormatError, UnsupportedError, shown
from edgellm.formats.settings import Settings

IN_BLOCKS = "FP8_PB_WO"
BLOCK = (128, 128)
ALGORITHMS = (
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    IN_BLOCKS,
    "NVFP4",
    "W4A16_NVFP4",
    "W4A8_NVFP4_FP8",
    "W8A16",
    "MIXED_PRECISION",
)


def unpack_modelopt(arrays: Arrays, settings: Settings, as_it_is: bool, losses: Losses) -> None:
    """Put a weight in the place of each quantized linear. Raises FormatError, UnsupportedError."""
    # hf_quant_config.json has it one level further down than config.json.
    said = settings.get("quant_algo") or settings.section("quantization").get("quant_algo")
    if said is None:
        raise FormatError("it does not say how the weights are quantized (quant_algo)")
    algorithm = said.upper() if isinstance(said, str) else said
    if algorithm not in ALGORITHMS:
        raise UnsupportedError(f"its quant_algo is {shown(said, 40)}; edgellm converts {', '.join(ALGORITHMS)}")
    for module in arrays.ending("pre_quant_scale"):
        raise UnsupportedError(f"the inputs of {module!r} are scaled (pre_quant_scale), which edgellm does not undo")
    for module in list(arrays.ending("weight_scale_2")):
        unpack_nvfp4(arrays, module, "weight", "weight_scale_2", as_it_is, losses)
    unpack_bytes(arrays, BLOCK if algorithm == IN_BLOCKS else None, as_it_is, losses)
