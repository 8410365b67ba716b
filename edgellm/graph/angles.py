"""The angles by which positions turn what they stand at (see `nodes.Rotation`), computed once for each position."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.graph.nodes import Rotation

STEP = 256  # positions that are computed at once
GROWTH = 4  # each place is so many times as large as the one before; the system gives memory as it is first written


class Angles:
    """Cosines and sines of a rotation by position, as far as positions have been asked for.

    table:    float32 [n_positions, 2, n_rot / 2]: cosines, then sines. It is another array when there are more.
    address:  int64 [1], where kernels look up where the table is.
    """

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation
        self._place: NDArray[np.float32] = np.empty((0, 2, len(rotation.frequencies)), np.float32)
        self.table = self._place
        self.address = np.zeros(1, np.int64)

    @property
    def position_bytes(self) -> int:
        """Of a position in the table."""
        return self.table.strides[0]

    def reach(self, n_positions: int) -> None:
        """Know the positions before n_positions. Only between runs."""
        n_known = len(self.table)
        if n_positions <= n_known:
            return
        n = -(-n_positions // STEP) * STEP
        if n > len(self._place):
            self._place = np.empty((max(n, GROWTH * len(self._place)), *self.table.shape[1:]), np.float32)
            self._place[:n_known] = self.table
            self.address[0] = self._place.ctypes.data
        for start in range(n_known, n, STEP):
            self.rotation.fill(np.arange(start, start + STEP), self._place[start : start + STEP])
        self.table = self._place[:n]
