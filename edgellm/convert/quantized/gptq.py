"""GPTQ checkpoints (Frantar et al., 2022), as AutoGPTQ and GPTQModel write them.

qweight  int32 [n_in * bits / 32, n_out]         q, packed along the columns of the weight
qzeros   int32 [n_groups, n_out * bits / 32]     zeros, less one in the first form of the format ("gptq")
scales   float [n_groups, n_out]
g_idx    int32 [n_in]                            the group of each column; missing where groups are in order
"""

from __future__ import annotations

import numpy as np

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.bits import unpack
from edgellm.convert.quantized.grids import Grid, Rows, in_groups
from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.made import MadeTensor
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.settings import Settings

BITS = (2, 3, 4, 8)
_FORMS = {"gptq": 1, "gptq_v2": 0}  # what is added to the zeros of a file


def unpack_gptq(arrays: Arrays, settings: Settings, as_it_is: bool, losses: Losses) -> None:
    """Put a weight in the place of each quantized linear. Raises FormatError, UnsupportedError."""
    form = settings.get("checkpoint_format", settings.get("format", "gptq"))
    if form not in _FORMS:
        raise UnsupportedError(f"its form of GPTQ is {form!r:.40}; edgellm converts {', '.join(_FORMS)}")
    for module in list(arrays.ending("qweight")):
        grid = _grid(arrays, module, settings, _FORMS[form])
        arrays.add(grid.as_it_is(losses) if as_it_is else grid.exactly())


def _grid(arrays: Arrays, module: str, settings: Settings, added: int) -> Grid:
    name = f"{module}.weight"
    words = arrays.integers(f"{module}.qweight", "I32")
    packed_zeros = arrays.integers(f"{module}.qzeros", "I32")
    scales, type_name = arrays.numbers(f"{module}.scales")
    group_of = None
    if arrays.has(f"{module}.g_idx"):
        group_of = arrays.integers(f"{module}.g_idx", "I32", "I64", n_dims=1).astype(np.int64)
    n_groups, n_out = scales.shape if scales.ndim == 2 else (0, 0)
    size = settings.count("group_size") if settings.get("group_size", -1) != -1 else 0
    n_in = (
        len(group_of) if group_of is not None else n_groups * size or 32 * len(words) // settings.count("bits", most=8)
    )
    bits, rest = divmod(32 * len(words), n_in or 1)
    if bits not in BITS or rest or words.shape[1] != n_out:
        raise UnsupportedError(
            f"tensor {name!r} has {bits} bits; edgellm converts GPTQ of {', '.join(map(str, BITS))}"
            if not rest and words.shape[1] == n_out
            else f"tensor {module + '.qweight'!r} is of shape {words.shape}, its scales of {scales.shape}"
        )
    if packed_zeros.shape != (n_groups, -(-n_out * bits // 32)):
        raise FormatError(
            f"tensor {module + '.qzeros'!r} is of shape {packed_zeros.shape}; its scales of {scales.shape}"
        )
    zeros = (unpack(packed_zeros, bits, n_out).astype(np.int32) + added) & ((1 << bits) - 1)
    if group_of is None:
        group_of = in_groups(n_in, size or n_in)

    def q(rows: Rows) -> np.ndarray:
        return unpack(words[:, rows].T, bits, n_in)

    return Grid(name, (n_out, n_in), bits, q, np.ascontiguousarray(scales.T), np.ascontiguousarray(zeros.T), group_of,
                type_name)  # fmt: skip


__all__ = ["MadeTensor", "unpack_gptq"]
