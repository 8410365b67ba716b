"""Integers with scales, as GPTQ, AWQ and compressed-tensors have them, in the GGUF type whose grid they fit.

    weight = scale * (q - zero)

with q of a few bits, and a scale and zero for each row and group of columns. A block of GGUF has 32 columns, a float16
scale and levels of its own; where a group is whole blocks, its q can be taken over as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.convert.quantized.losses import Losses
from edgellm.convert.quantized.made import MadeTensor, Rows, of_floats
from edgellm.errors import FormatError, UnsupportedError
from edgellm.quants import FORMATS
from edgellm.quants.bits import join_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 32
_MOST_ROUNDING = 2.0**-11  # of a number to float16, relative
# Types without a minimum: their levels, from the lowest to the highest.
_LEVELS = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}


@dataclass(frozen=True)
class Grid:
    """A matrix [n_out, n_in] of integers with scales.

    q:         rows -> uint8 [n, n_in], from 0 to 2**bits - 1.
    scales:    float32 [n_out, n_groups]. zeros: int32 of the same shape.
    group_of:  int [n_in]: the group of each column.
    type:      the float type that the checkpoint computes in.
    order:     what the checkpoint calls the setting that scatters groups over the columns.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    q: Callable[[Rows], NDArray[np.uint8]]
    scales: NDArray[np.float32]
    zeros: NDArray[np.int32]
    group_of: NDArray[np.int64]
    type: str
    order: str = "desc_act"

    def __post_init__(self) -> None:
        n_out, n_in = self.shape
        for what, found in (("scales", self.scales.shape), ("zeros", self.zeros.shape)):
            if found[0] != n_out or found != self.scales.shape:
                raise FormatError(f"tensor {self.name!r}: its {what} are of shape {found}, its weights of {self.shape}")
        if len(self.group_of) != n_in or not 0 <= self.group_of.min() <= self.group_of.max() < self.scales.shape[1]:
            raise FormatError(f"tensor {self.name!r}: its groups of columns are not those of its {n_in} columns")

    def floats(self, rows: Rows) -> NDArray[np.float32]:
        """float32 [n, n_in]: the weights, to the last bit."""
        values = self.q(rows).astype(np.float32) - self.zeros[rows].astype(np.float32)[:, self.group_of]
        return self.scales[rows][:, self.group_of] * values

    def exactly(self) -> MadeTensor:
        """The weights in float32."""
        return of_floats(self.name, self.shape, "F32", self.floats)

    def as_it_is(self, losses: Losses) -> MadeTensor:
        """The weights in the GGUF type that holds them with the least loss; what is lost is noted.

        Raises UnsupportedError for groups that are scattered over the columns so that no type can have them.
        """
        blocks = self._group_of_blocks()
        if blocks is None and self._is_scattered():
            raise UnsupportedError(
                f"tensor {self.name!r}: {self.order} scatters its groups over the columns, which no type of GGUF has; "
                "choose a type, and it is made of the dequantized weights: --type Q8_0, or Q4_K_M"
            )
        type_name = None if blocks is None else self._type()
        halves = self.scales.astype(np.float16).astype(np.float32)
        if type_name is None or blocks is None or not _is_near(halves, self.scales):
            why = "groups that are no whole blocks" if blocks is None else "a range or scales that no type has"
            losses.dequantized(self.name, self.type, why)
            return of_floats(self.name, self.shape, self.type, self.floats)
        if not np.array_equal(halves, self.scales):
            losses.rounded("scales")
        minima = None
        if type_name in ("Q4_1", "Q5_1"):
            exact = -self.scales * self.zeros
            minima = exact.astype(np.float16)
            if not np.isfinite(minima).all():
                losses.dequantized(self.name, self.type, "minima beyond float16")
                return of_floats(self.name, self.shape, self.type, self.floats)
            if not np.array_equal(minima.astype(np.float32), exact):
                losses.rounded("minima")
        return MadeTensor(
            self.name, self.shape, FORMATS[type_name], lambda rows: self._packed(rows, type_name, blocks, minima)
        )

    def _group_of_blocks(self) -> NDArray[np.int64] | None:
        """int [n_in / 32]: the group of each block; None where a block has columns of several, or is no whole one."""
        if self.shape[1] % _BLOCK:
            return None
        blocks = self.group_of.reshape(-1, _BLOCK)
        return blocks[:, 0] if (blocks == blocks[:, :1]).all() else None

    def _is_scattered(self) -> bool:
        return bool((np.diff(self.group_of) < 0).any())

    def _type(self) -> str | None:
        """The smallest type whose levels hold all that q - zero can be; or q itself, with a minimum."""
        low, high = -int(self.zeros.max()), (1 << self.bits) - 1 - int(self.zeros.min())
        fitting = (name for name, (least, most) in _LEVELS.items() if least <= low and high <= most)
        found = next(fitting, None)
        if found == "Q4_0" or self.bits > 5:
            return found
        return "Q4_1" if self.bits <= 4 else found if found == "Q5_0" else "Q5_1"

    def _packed(
        self, rows: Rows, type_name: str, blocks: NDArray[np.int64], minima: NDArray[np.float16] | None
    ) -> NDArray[np.uint8]:
        """uint8 [n, row_bytes] of a block format."""
        q = self.q(rows)
        n = len(q)
        fields: dict[str, Any] = {"d": self.scales[rows][:, blocks].astype(np.float16).reshape(-1)}
        if minima is not None:
            fields["m"] = minima[rows][:, blocks].reshape(-1)
        else:
            zeros = self.zeros[rows][:, blocks].astype(np.int16)[:, :, None]
            q = (q.reshape(n, -1, _BLOCK) - zeros - _LEVELS[type_name][0]).astype(np.uint8)
        q = q.reshape(-1, 2, _BLOCK // 2)
        if type_name == "Q8_0":
            fields["qs"] = (q.reshape(-1, _BLOCK) ^ 128).view(np.int8)
        else:
            fields["qs"] = join_bits(q & 15, 4)
        if type_name in ("Q5_0", "Q5_1"):
            fields["qh"] = np.packbits(q.reshape(-1, _BLOCK) >> 4, axis=1, bitorder="little")
        packed = FORMATS[type_name].pack(len(fields["d"]), **fields)
        return packed.view(np.uint8).reshape(n, -1)


def in_groups(n_in: int, size: int) -> NDArray[np.int64]:
    """int [n_in]: the group of each column where `size` neighbours are one."""
    return np.arange(n_in) // size


def _is_near(halves: NDArray[np.float32], exact: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(halves).all() and (np.abs(halves - exact) <= _MOST_ROUNDING * np.abs(exact)).all())
