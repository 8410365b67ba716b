"""Floats of four bits with two scales (NVFP4), as ModelOpt and compressed-tensors write them.

    numbers   uint8 [n_out, n_in / 2]: two of E2M1 a byte, the first in its low half
    scales    float of eight bits (E4M3) [n_out, n_groups], for 16 numbers each as a rule
    one more  float32, of the whole tensor

weight = number * (scale * that of the tensor); compressed-tensors has the inverse of the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.made import Rows, of_floats
from edgellm.convert.quantized.small_floats import values_of
from edgellm.errors import FormatError
from edgellm.quants.mxfp4 import MAGNITUDES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES]).astype(np.float32) / 2


def unpack_nvfp4(
    arrays: Arrays, module: str, numbers: str, of_tensor: str, as_it_is: bool, losses: Losses, is_inverse: bool = False
) -> None:
    """Put a float weight in the place of a module's tensors called `numbers`, "weight_scale" and `of_tensor`.

    is_inverse:  whether the other scales are divided by that of the tensor, and not multiplied.

    Raises FormatError.
    """
    name = f"{module}.weight"
    packed = arrays.integers(f"{module}.{numbers}", "U8")
    scales = values_of("F8_E4M3")[arrays.integers(f"{module}.weight_scale", "F8_E4M3")]
    tensor_scale, _ = arrays.numbers(f"{module}.{of_tensor}")
    n_out, n_in = len(packed), 2 * packed.shape[1]
    if tensor_scale.size != 1 or len(scales) != n_out or n_in % scales.shape[1]:
        raise FormatError(
            f"tensor {name!r} is of shape {[n_out, n_in]}, its scales of {list(scales.shape)} and "
            f"{list(tensor_scale.shape)}, which do not belong together"
        )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scales = scales / tensor_scale.reshape(()) if is_inverse else scales * tensor_scale.reshape(())
    if not np.isfinite(scales).all():
        raise FormatError(f"the scales of tensor {name!r} are not finite")
    group = n_in // scales.shape[1]
    type_name = "BF16" if as_it_is else "F32"

    def rows_of(rows: Rows) -> NDArray[np.float32]:
        some = packed[rows]
        weights = _VALUES[np.stack([some & 15, some >> 4], -1)]
        return (weights.reshape(len(some), -1, group) * scales[rows][:, :, None]).reshape(len(some), n_in)

    if as_it_is:
        losses.dequantized(name, type_name, "GGUF has no type for NVFP4")
    arrays.add(of_floats(name, (n_out, n_in), type_name, rows_of))
