"""AWQ checkpoints (Lin et al., 2023), in the form "gemm" that AutoAWQ writes.

qweight  int32 [n_in, n_out / 8]       q of eight rows of the weight in a word, in the order of _PLACES
qzeros   int32 [n_groups, n_out / 8]   zeros likewise
scales   float [n_groups, n_out]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.convert.quantized.arrays import Arrays
from edgellm.convert.quantized.grids import Grid, Rows, in_groups
from edgellm.convert.quantized.losses import Losses
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS, _IN_WORD = 4, 8
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of eight neighbours in a word
# Other names are of programs that read the same form; "gemv" and "marlin" have one of their own.
_FORMS = ("gemm", "exllama", "ipex")


def unpack_awq(arrays: Arrays, settings: Settings, as_it_is: bool, losses: Losses) -> None:
    """Put a weight in the place of each quantized linear. Raises FormatError, UnsupportedError."""
    form = str(settings.get("version", settings.get("format", "gemm"))).lower()
    if form not in _FORMS:
        raise UnsupportedError(f"its form of AWQ is {form!r:.40}; edgellm converts gemm")
    bits = settings.count("bits", settings.get("w_bit", _BITS))
    if bits != _BITS:
        raise UnsupportedError(f"it is AWQ of {bits} bits; edgellm converts AWQ of {_BITS}")
    for module in list(arrays.ending("qweight")):
        grid = _grid(arrays, module)
        arrays.add(grid.as_it_is(losses) if as_it_is else grid.exactly())


def _grid(arrays: Arrays, module: str) -> Grid:
    words = arrays.integers(f"{module}.qweight", "I32")
    packed_zeros = arrays.integers(f"{module}.qzeros", "I32")
    scales, type_name = arrays.numbers(f"{module}.scales")
    n_in, n_out = len(words), words.shape[1] * _IN_WORD
    n_groups = len(packed_zeros)
    if scales.shape != (n_groups, n_out) or packed_zeros.shape[1] != words.shape[1] or n_in % (n_groups or 1):
        raise FormatError(
            f"{module}: qweight is of shape {words.shape}, qzeros of {packed_zeros.shape}, scales of {scales.shape}, "
            "which do not belong together"
        )
    zeros = _columns(packed_zeros, np.arange(n_out)).astype(np.int32)

    def q(rows: Rows) -> NDArray[np.uint8]:
        return _columns(words, np.arange(n_out)[rows])

    return Grid(f"{module}.weight", (n_out, n_in), _BITS, q, np.ascontiguousarray(scales.T), zeros,
                in_groups(n_in, n_in // n_groups), type_name)  # fmt: skip


def _columns(words: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [n_columns, n_rows]: some columns of what words of eight hold."""
    shifts = (_BITS * _PLACES[columns % _IN_WORD]).astype(np.uint32)
    taken = words.view(np.uint32)[:, columns // _IN_WORD] >> shifts
    return np.ascontiguousarray((taken & 15).astype(np.uint8).T)
