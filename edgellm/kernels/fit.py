"""The compiled search for the scales of blocks, behind the signature of `edgellm.quants.fit.fit`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.kernels.records import FIT, fit_scratch_bytes
from edgellm.kernels.registry import find
from edgellm.quants import BlockFormat
from edgellm.quants.grids import Fitted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.kernels.store import KernelStore

    Floats = NDArray[np.floating[Any]]


class CompiledFit:
    """Gives what `edgellm.quants.fit.fit` gives, to the last bit. May be called from several threads at once.

    A format's kernel is loaded, or compiled, when the format is first asked for.
    """

    def __init__(self, store: KernelStore) -> None:
        self._store = store  # the machine code lives as long as this
        self._functions: dict[BlockFormat, Callable[[int, int, int], None]] = {}
        self._lock = threading.Lock()

    def __call__(self, block_format: BlockFormat, x: Floats, importance: Floats | None = None) -> Fitted:
        """float32 [n, block_size] -> scales and levels on the format's grid; importance has the shape of x."""
        grid = block_format.grid
        assert grid is not None
        n = len(x)
        x = np.ascontiguousarray(x, np.float32)
        found = Fitted(
            np.empty(n, np.float32),
            np.empty(n, np.float32),
            np.empty((n, grid.n_groups), np.int8),
            np.empty((n, grid.n_groups), np.int8),
            np.empty(x.shape, np.uint8),
        )
        scratch = np.empty(fit_scratch_bytes(self._store.isa.lanes, block_format.block_size, grid.n_groups), np.uint8)
        targets = grid.targets
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        record = FIT.new()
        arrays = {"x": x, "importance": weights, "targets": targets, "scratch": scratch, **found._asdict()}
        for name, array in arrays.items():
            record[name] = 0 if array is None else array.ctypes.data
        record["n_blocks"] = record["chunk_blocks"] = n
        record["n_targets"] = len(targets)
        record["scratch_bytes"] = scratch.nbytes
        self._function(block_format)(record.ctypes.data, 0, 0)
        return found

    def _function(self, block_format: BlockFormat) -> Callable[[int, int, int], None]:
        with self._lock:
            if block_format not in self._functions:
                kernel = find("fit", block_format)
                self._store.load([kernel])
                self._functions[block_format] = self._store.function(kernel)
            return self._functions[block_format]
