"""compressed-tensors checkpoints (of llm-compressor and vLLM), and the folders in FP8 of others.

pack-quantized   weight_packed int32 [n_out, n_in * bits / 32], q less half of its range; weight_shape;
                 weight_zero_point int32, packed along the rows; weight_g_idx where groups are scattered
int-quantized    weight int8 [n_out, n_in], weight_zero_point int8
float-quantized  weight in FP8
nvfp4-pack-quantized  weight_packed uint8, weight_scale in FP8, weight_global_scale (see `nvfp4.py`)
weight_scale     [1], [n_out, 1], [n_out, n_groups] or a scale for each block; weight_scale_inv elsewhere
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.bits import unpack
from edgellm.convert.quantized.grids import Grid, Rows, in_groups
from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.nvfp4 import unpack_nvfp4
from edgellm.convert.quantized.small_floats import TYPES, unpack_fp8
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "nvfp4-pack-quantized",
    "naive-quantized",
    "mixed-precision",
    "dense",
)
# How activations, and keys and values in the cache, were rounded where the checkpoint was made for.
_ACTIVATIONS = re.compile(r"\.(input|output|k|v|q)_(global_)?(scale|zero_point)(_ub)?$|\.(activation|input)_scale_ub$")


def unpack_compressed(arrays: Arrays, settings: Settings, as_it_is: bool, losses: Losses) -> None:
    """Put a weight in the place of each quantized linear. Raises FormatError, UnsupportedError."""
    form = settings.get("format", "dense")
    if form not in FORMATS:
        raise UnsupportedError(f"its form of compressed-tensors is {form!r:.40}; edgellm converts {', '.join(FORMATS)}")
    sparsity = settings.section("sparsity_config").get("format", "dense")
    if sparsity != "dense":
        raise UnsupportedError(
            f"its weights are sparse ({sparsity!r:.40}), which edgellm does not convert; it can dense ones"
        )
    if settings.section("transform_config").get("config_groups"):
        raise UnsupportedError("its weights are rotated (transform_config), which edgellm does not undo")
    for module in list(arrays.ending("weight_global_scale")):
        unpack_nvfp4(arrays, module, "weight_packed", "weight_global_scale", as_it_is, losses, is_inverse=True)
    for module in list(arrays.ending("weight_packed")):
        _add(arrays, _packed(arrays, module), as_it_is, losses)
    unpack_plain(arrays, settings, as_it_is, losses)


def unpack_plain(arrays: Arrays, settings: Settings, as_it_is: bool, losses: Losses) -> None:
    """The same for weights of a whole byte each: integers, and FP8 of any maker."""
    block = settings.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ):
        raise FormatError(f"config.json: weight_block_size is {block!r:.60}; expected two numbers")
    unpack_bytes(arrays, (block[0], block[1]) if block else None, as_it_is, losses)


def unpack_bytes(arrays: Arrays, block: tuple[int, int] | None, as_it_is: bool, losses: Losses) -> None:
    """The same, by what stands beside each weight. block: rows and columns with one scale, where that is said.

    Raises FormatError, UnsupportedError.
    """
    for scale in ("weight_scale", "weight_scale_inv"):
        for module in list(arrays.ending(scale)):
            kind = arrays.type_of(f"{module}.weight")
            if kind in TYPES:
                unpack_fp8(arrays, module, scale, block, as_it_is, losses)
            elif kind == "I8":
                _add(arrays, _whole(arrays, module), as_it_is, losses)
            elif not arrays.has(f"{module}.weight"):
                raise FormatError(f"the checkpoint has {module + '.' + scale!r} and no weight for it")
    _refuse_without_scales(arrays)
    for name in [*arrays.plain, *arrays.floats]:
        if _ACTIVATIONS.search(name):
            arrays.drop(name)
            losses.left_out("scales of activations")


def _refuse_without_scales(arrays: Arrays) -> None:
    """Raise an error for what is left in FP8: no number of it is a weight without its scale."""
    for name in (name for name, found in arrays.plain.items() if found.dtype in TYPES):
        scales = [f"{name}_{scale}" for scale in ("scale", "scale_inv")]
        if any(map(arrays.has, scales)):
            raise UnsupportedError(
                f"tensor {name!r} is {arrays.type_of(name)}, and its scales are of a form that edgellm does not know"
            )
        raise FormatError(
            f"tensor {name!r} is {arrays.type_of(name)}, and the checkpoint has no scale for it "
            f"({' or '.join(scales)}); a file is missing, or of another checkpoint"
        )


def _add(arrays: Arrays, grid: Grid, as_it_is: bool, losses: Losses) -> None:
    arrays.add(grid.as_it_is(losses) if as_it_is else grid.exactly())


def _packed(arrays: Arrays, module: str) -> Grid:
    name = f"{module}.weight"
    shape = arrays.integers(f"{module}.weight_shape", "I64", "I32", n_dims=1).tolist()
    words = arrays.integers(f"{module}.weight_packed", "I32")
    if len(shape) != 2 or shape[0] != len(words) or shape[1] < 1:
        raise FormatError(f"tensor {name!r} says that it is of shape {shape}, and has {len(words)} rows")
    n_out, n_in = shape
    # As many bits as give so many words; several where rows are short, and then the most that do.
    bits = max((b for b in range(1, 9) if -(-n_in * b // 32) == words.shape[1]), default=0)
    if not bits:
        raise FormatError(f"tensor {name!r} has {words.shape[1]} words for {n_in} weights in a row")
    scales, type_name = _scales(arrays, module, n_out)
    half, zeros = 1 << (bits - 1), None
    if arrays.type_of(f"{module}.weight_zero_point") == "I32":
        packed = arrays.integers(f"{module}.weight_zero_point", "I32")
        zeros = unpack(packed.T, bits, n_out).T.astype(np.int32)
    elif arrays.has(f"{module}.weight_zero_point"):
        zeros = arrays.integers(f"{module}.weight_zero_point", "I8").astype(np.int32) + half
    zeros = np.full(scales.shape, half, np.int32) if zeros is None else np.ascontiguousarray(zeros)
    group_of = _groups(n_in, scales.shape[1], name)
    if arrays.has(f"{module}.weight_g_idx"):
        group_of = arrays.integers(f"{module}.weight_g_idx", "I32", "I64", n_dims=1).astype(np.int64)

    def q(rows: Rows) -> NDArray[np.uint8]:
        return unpack(words[rows], bits, n_in)

    return Grid(name, (n_out, n_in), bits, q, scales, zeros, group_of, type_name, "its order of activations (actorder)")


def _whole(arrays: Arrays, module: str) -> Grid:
    """Weights of a byte each: as few bits as they need, for four may be meant."""
    name = f"{module}.weight"
    weight = arrays.integers(name, "I8")
    scales, type_name = _scales(arrays, module, len(weight))
    zeros = np.zeros(scales.shape, np.int32)
    if arrays.has(f"{module}.weight_zero_point"):
        kept: Any = arrays.integers(f"{module}.weight_zero_point", "I8")
        zeros = np.broadcast_to(kept.astype(np.int32), scales.shape).copy()
    bits = 4 if weight.size and weight.min() >= -8 and weight.max() <= 7 else 8
    half = 1 << (bits - 1)

    def q(rows: Rows) -> NDArray[np.uint8]:
        return (weight[rows].astype(np.int16) + half).astype(np.uint8)

    n_in = weight.shape[1]
    return Grid(
        name, (len(weight), n_in), bits, q, scales, zeros + half, _groups(n_in, scales.shape[1], name), type_name
    )


def _scales(arrays: Arrays, module: str, n_out: int) -> tuple[NDArray[np.float32], str]:
    """float32 [n_out, n_groups], from one for all, or one for each row, or several."""
    found, type_name = arrays.numbers(f"{module}.weight_scale")
    scales = found.reshape(-1, 1) if found.ndim < 2 else found
    if scales.ndim != 2 or len(scales) not in (1, n_out):
        raise FormatError(f"tensor {module + '.weight_scale'!r} is of shape {found.shape}, for {n_out} rows")
    return np.ascontiguousarray(np.broadcast_to(scales, (n_out, scales.shape[1]))), type_name


def _groups(n_in: int, n_groups: int, name: str) -> NDArray[np.int64]:
    if n_in % n_groups:
        raise FormatError(f"tensor {name!r} has {n_in} columns, which {n_groups} groups do not divide")
    return in_groups(n_in, n_in // n_groups)
