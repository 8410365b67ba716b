"""The loops over all logits of a large vocabulary, for each group of MAXIMA_GROUP: in machine code, or in NumPy.

A vocabulary of a quarter of a million takes NumPy several passes, a good part of a token's time; a kernel takes one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgellm.kernels import records
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.registry import Kernel, find

if TYPE_CHECKING:
    from edgellm.kernels.schema import Schema
    from edgellm.kernels.store import KernelStore


class GroupLoops:
    """The loops in NumPy. Logits are float32 [n]; the last group may be smaller."""

    def largest(self, logits: np.ndarray) -> np.ndarray:
        """The largest of every group, float32 [n_groups]."""
        return np.maximum.reduceat(logits, np.arange(0, len(logits), MAXIMA_GROUP))

    def weights(self, logits: np.ndarray, largest: float, temperature: float, out: np.ndarray) -> np.ndarray:
        """How likely tokens are beside the likeliest, into `out`, float32 [n]; returns sums of groups, float64.

        Float32 is enough here, and a part of what float64 takes. largest: of the logits. temperature: they are divided
        by it, and so large that float32 holds its inverse.
        """
        with np.errstate(over="ignore"):
            np.subtract(logits, np.float32(largest), out=out, dtype=np.float32)
            if temperature != 1:
                np.multiply(out, np.float32(1 / temperature), out=out)
        np.exp(out, out=out)
        n = len(out) // MAXIMA_GROUP * MAXIMA_GROUP
        sums = np.einsum("ij->i", out[:n].reshape(-1, MAXIMA_GROUP)).astype(np.float64)  # `sum` is far slower
        return np.append(sums, out[n:].sum()) if n < len(out) else sums


IN_NUMPY = GroupLoops()


class CompiledGroupLoops(GroupLoops):
    """The same by kernels, which are loaded when a step first needs them. For one thread at a time."""

    def __init__(self, store: KernelStore) -> None:
        self._store = store
        self._functions: dict[str, Callable[[int, int, int], None]] = {}

    def largest(self, logits: np.ndarray) -> np.ndarray:
        n_groups = len(logits) // MAXIMA_GROUP
        if not _is_plain(logits) or not n_groups:
            return super().largest(logits)
        found = np.empty(-(-len(logits) // MAXIMA_GROUP), np.float32)
        self._run(records.GROUP_LARGEST, x=logits.ctypes.data, n_groups=n_groups, out=found.ctypes.data)
        if n_groups < len(found):
            found[-1] = logits[n_groups * MAXIMA_GROUP :].max()
        return found

    def weights(self, logits: np.ndarray, largest: float, temperature: float, out: np.ndarray) -> np.ndarray:
        n_groups = len(logits) // MAXIMA_GROUP
        if not _is_plain(logits) or not n_groups:
            return super().weights(logits, largest, temperature, out)
        sums = np.empty(-(-len(logits) // MAXIMA_GROUP))
        self._run(
            records.GROUP_WEIGHTS,
            x=logits.ctypes.data,
            n_groups=n_groups,
            largest=largest,
            scale=1 / temperature,
            weights=out.ctypes.data,
            sums=sums.ctypes.data,
        )
        if n_groups < len(sums):
            rest = slice(n_groups * MAXIMA_GROUP, None)
            sums[-1] = super().weights(logits[rest], largest, temperature, out[rest])[0]
        return sums

    def _run(self, schema: Schema, **words: float) -> None:
        function = self._functions.get(schema.name)
        if function is None:
            kernel: Kernel = find(schema.name)
            self._store.load([kernel])
            function = self._functions[schema.name] = self._store.function(kernel)
        record = schema.filled(words)
        function(record.ctypes.data, 0, 0)


def _is_plain(logits: np.ndarray) -> bool:
    return logits.dtype == np.float32 and logits.flags.c_contiguous
