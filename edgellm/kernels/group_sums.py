"""What kernels add for the sum of a group of inputs (see `ops/linear.py`), by the format of the weights.

A format with minima gets float32 sums, which its minima multiply. One with a zero point gets what this takes from the
integer sum of products, as an integer: sum((u - zero) * q) = sum(u * q) - zero * sum(q), exactly.
"""

from __future__ import annotations

from typing import NamedTuple

from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat


class GroupSums(NamedTuple):
    """An array of `records.QUANTIZED`, with a number for every `scale_group` columns.

    zero:  0: float32, the scale of the group times its sum. Otherwise int32, -zero times its sum: a correction.
    """

    scale_group: int
    zero: int

    @property
    def field(self) -> str:
        return f"correction{self.zero}_{self.scale_group}" if self.zero else f"sum{self.scale_group}"


def sums_for(fmt: BlockFormat) -> GroupSums:
    """Those that weights of this format need."""
    return GroupSums(fmt.scale_group, fmt.zero)


ALL_SUMS = sorted({sums_for(fmt) for fmt in FORMATS.values() if not isinstance(fmt, FloatFormat)})
