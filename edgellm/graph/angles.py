"""The angles by which positions turn what they stand at (see `nodes.Rotation`), computed once for each position."""

from __future__ import annotations

import numpy as np

from edgellm.graph.nodes import Rotation

LEAST_POSITIONS = 256


class Angles:
    """Cosines and sines of a rotation by position, as far as positions have been asked for.

    table:    float32 [n_positions, 2, n_rot / 2]: cosines, then sines. It is another array when there are more.
    address:  int64 [1], where kernels look up where the table is.
    """

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation
        self.table = np.empty((0, 2, len(rotation.frequencies)), np.float32)
        self.address = np.zeros(1, np.int64)

    def reach(self, n_positions: int) -> None:
        """Know the positions before n_positions. Only between runs."""
        n_known = len(self.table)
        if n_positions <= n_known:
            return
        n = max(n_positions, 2 * n_known, LEAST_POSITIONS)
        table = np.empty((n, *self.table.shape[1:]), np.float32)
        table[:n_known] = self.table
        self.rotation.fill(np.arange(n_known, n), table[n_known:])
        self.table = table
        self.address[0] = table.ctypes.data
