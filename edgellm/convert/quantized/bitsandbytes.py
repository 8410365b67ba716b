"""bitsandbytes checkpoints: 4 bits by a table (QLoRA's nf4, fp4; Dettmers et al., 2023), and LLM.int8 (2022).

4 bits, all numbers of a matrix in one run, the first of two in the high half of a byte:

    weight                                uint8 [n / 2, 1]; or the same bytes as floats (bnb_4bit_quant_storage)
    weight.quant_map                      float32 [16]: the table
    weight.absmax                         float32 [n / blocksize]; or uint8, quantized once more:
    weight.nested_absmax, .nested_quant_map
    weight.quant_state.bitsandbytes__nf4  uint8: JSON with shape, blocksize, dtype, nested_offset, nested_blocksize

8 bits: weight int8 [n_out, n_in] and SCB float32 [n_out], the largest magnitude of each row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.grids import Grid, Rows, in_groups
from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.made import of_floats
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.settings import Settings
from edgellm.formats.strict_json import parse_object

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STATE = "weight.quant_state.bitsandbytes__"
_TABLES = ("nf4", "fp4")
_TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_ROW_MAJOR = 0  # of weight_format: other orders are of certain GPUs


def unpack_bitsandbytes(arrays: Arrays, settings: Settings, as_it_is: bool, losses: Losses) -> None:
    """Put a weight in the place of each quantized linear. Raises FormatError, UnsupportedError."""
    for table in _TABLES:
        for module in list(arrays.ending(_STATE + table)):
            _unpack_table(arrays, module, table, as_it_is, losses)
    for module in list(arrays.ending("SCB")):
        _unpack_int8(arrays, module, as_it_is, losses)


def _unpack_table(arrays: Arrays, module: str, table: str, as_it_is: bool, losses: Losses) -> None:
    name = f"{module}.weight"
    state = Settings(parse_object(arrays.integers(f"{module}.{_STATE}{table}", "U8", n_dims=1)), file=f"{name}: state")
    shape, block = state.get("shape"), state.count("blocksize")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(dim) is int and dim > 0 for dim in shape):
        raise FormatError(f"tensor {name!r}: its shape is {shape!r:.60}; expected two numbers")
    n_out, n_in = shape
    packed = arrays.any_bytes(name)
    levels = arrays.numbers(f"{name}.quant_map")[0].reshape(-1)
    absmax = _absmax(arrays, name, state)
    if len(levels) != 16 or 2 * len(packed) < n_out * n_in or len(absmax) != math.ceil(n_out * n_in / block):
        raise FormatError(f"tensor {name!r} of shape {n_out} x {n_in} has {len(packed)} bytes and {len(absmax)} scales")
    type_name = _TYPES.get(state.get("dtype", "float32"), "F32") if as_it_is else "F32"

    def rows_of(rows: Rows) -> NDArray[np.float32]:
        numbers = np.arange(n_out)[rows][:, None] * n_in + np.arange(n_in)
        q = np.where(numbers & 1, packed[numbers // 2] & 15, packed[numbers // 2] >> 4)
        return levels[q] * absmax[numbers // block]

    if as_it_is:
        losses.dequantized(name, type_name, f"no type of GGUF has the levels of {table}")
    arrays.add(of_floats(name, (n_out, n_in), type_name, rows_of))


def _absmax(arrays: Arrays, name: str, state: Settings) -> NDArray[np.float32]:
    """float32 [n_blocks]: the largest magnitude of each block."""
    if arrays.type_of(f"{name}.absmax") != "U8":
        return arrays.numbers(f"{name}.absmax")[0].reshape(-1)
    q = arrays.integers(f"{name}.absmax", "U8", n_dims=1)
    levels, scales = (arrays.numbers(f"{name}.{part}")[0].reshape(-1) for part in ("nested_quant_map", "nested_absmax"))
    block, offset = state.count("nested_blocksize"), state.get("nested_offset", 0.0)
    if len(levels) != 256 or len(scales) != math.ceil(len(q) / block) or not isinstance(offset, (int, float)):
        raise FormatError(f"tensor {name!r}: its nested scales do not belong to its {len(q)} scales")
    return levels[q] * np.repeat(scales, block)[: len(q)] + np.float32(offset)


def _unpack_int8(arrays: Arrays, module: str, as_it_is: bool, losses: Losses) -> None:
    name = f"{module}.weight"
    if arrays.has(f"{module}.weight_format"):
        order = arrays.integers(f"{module}.weight_format", "U8", n_dims=0)
        if int(order) != _ROW_MAJOR:
            raise UnsupportedError(f"tensor {name!r} is in the order of a GPU (weight_format {int(order)})")
    weight = arrays.integers(name, "I8")
    largest, _ = arrays.numbers(f"{module}.SCB")
    zeros = np.full((len(weight), 1), 128, np.int32)
    scales = (largest.reshape(-1, 1) / np.float32(127)).astype(np.float32)

    def q(rows: Rows) -> NDArray[np.uint8]:
        return weight[rows].view(np.uint8) ^ np.uint8(128)

    n_in = weight.shape[1]
    grid = Grid(name, (len(weight), n_in), 8, q, scales, zeros, in_groups(n_in, n_in), "F16")
    arrays.add(grid.as_it_is(losses) if as_it_is else grid.exactly())
