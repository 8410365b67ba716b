"""The loops over logits of a large vocabulary, for groups of MAXIMA_GROUP: in machine code, or in NumPy.

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

ALL_BITS = np.uint64(2**64 - 1)


def rows_of(logits: np.ndarray, words: np.ndarray | None, groups: np.ndarray) -> np.ndarray:
    """The logits of some groups, [len(groups), MAXIMA_GROUP]: minus infinity for tokens that must not come.

    logits:  [n]; the last group may be smaller, and is filled up with minus infinity.
    words:   uint64 [n_groups], a bit for each token that may come, the lowest first; None: all may.
    groups:  int64, in rising order.
    """
    n_whole = len(logits) // MAXIMA_GROUP
    n = int(groups.searchsorted(n_whole))
    rows = logits[: n_whole * MAXIMA_GROUP].reshape(-1, MAXIMA_GROUP).take(groups[:n], axis=0)
    if n < len(groups):
        rest = logits[n_whole * MAXIMA_GROUP :]
        last = np.full((len(groups) - n, MAXIMA_GROUP), -np.inf, logits.dtype)
        last[:, : len(rest)] = rest
        rows = np.concatenate([rows, last])
    if words is not None:
        bits = np.unpackbits(words[groups].view(np.uint8), bitorder="little")
        rows = np.where(bits.view(bool).reshape(rows.shape), rows, rows.dtype.type(-np.inf))
    return rows


class GroupLoops:
    """The loops in NumPy. Logits, words and groups are those of `rows_of`; logits are float32."""

    def largest(self, logits: np.ndarray, words: np.ndarray | None, groups: np.ndarray) -> np.ndarray:
        """The largest of each group, [len(groups)], as the logits are."""
        return rows_of(logits, words, groups).max(axis=1)

    def weights(
        self, logits: np.ndarray, words: np.ndarray | None, groups: np.ndarray, largest: float, temperature: float
    ) -> np.ndarray:
        """How likely tokens are beside the likeliest, e**x with x = (logit - largest) / temperature.

        Returns sums of e**x and of x e**x for each group: float64 [len(groups), 2]. Inside a group float32 is enough,
        and a part of what float64 takes.

        largest:      of the logits.
        temperature:  they are divided by it, and so large that float32 holds its inverse.
        """
        x = rows_of(logits, words, groups)
        with np.errstate(over="ignore", invalid="ignore"):  # minus infinity times 0
            x = (x.astype(np.float32) - np.float32(largest)) * np.float32(1 / temperature)
            x = np.where(x > -88, x, np.float32(-88))
        weights = np.where(x > -87.33654, np.exp(x), np.float32(0))
        return np.stack([weights.sum(axis=1), (weights * x).sum(axis=1)], axis=1).astype(np.float64)

    def spread(self, logits: np.ndarray, words: np.ndarray | None, groups: np.ndarray, middle: float) -> np.ndarray:
        """Over all tokens of some groups that may come: their number, and the sums of logit - middle and of its square.

        float64 [3], infinite where float32 cannot hold a square.
        """
        rows = rows_of(logits, words, groups).astype(np.float32)
        with np.errstate(over="ignore"):
            rest = rows[rows > -np.inf] - np.float32(middle)
            return np.array([len(rest), rest.sum(dtype=np.float64), np.square(rest).sum(dtype=np.float64)])


IN_NUMPY = GroupLoops()


class CompiledGroupLoops(GroupLoops):
    """The same by kernels, which are loaded when a step first needs them. For one thread at a time."""

    def __init__(self, store: KernelStore) -> None:
        self._store = store
        self._functions: dict[str, Callable[[int, int, int], None]] = {}
        self._every = np.empty(0, np.uint64)

    def largest(self, logits: np.ndarray, words: np.ndarray | None, groups: np.ndarray) -> np.ndarray:
        found = np.empty(len(groups), logits.dtype)
        n = self._run(records.GROUP_LARGEST, logits, words, groups, found)
        if n < len(groups):
            found[n:] = super().largest(logits, words, groups[n:])
        return found

    def weights(
        self, logits: np.ndarray, words: np.ndarray | None, groups: np.ndarray, largest: float, temperature: float
    ) -> np.ndarray:
        found = np.empty((len(groups), 2))
        n = self._run(
            records.GROUP_WEIGHTS, logits, words, groups, found, largest=float(largest), scale=1 / temperature
        )
        if n < len(groups):
            found[n:] = super().weights(logits, words, groups[n:], largest, temperature)
        return found

    def spread(self, logits: np.ndarray, words: np.ndarray | None, groups: np.ndarray, middle: float) -> np.ndarray:
        found = np.zeros(3)
        n = self._run(records.GROUP_SPREAD, logits, words, groups, found, middle=middle)
        return found + super().spread(logits, words, groups[n:], middle) if n < len(groups) else found

    def _run(
        self,
        schema: Schema,
        logits: np.ndarray,
        words: np.ndarray | None,
        groups: np.ndarray,
        out: np.ndarray,
        **others: float,
    ) -> int:
        """Fill the first of `out`; returns how many. What is left is not what a kernel can read."""
        if logits.dtype != np.float32 or not logits.flags.c_contiguous:
            return 0
        n = int(groups.searchsorted(len(logits) // MAXIMA_GROUP))  # those that are whole
        if not n:
            return 0
        if words is None:
            if len(self._every) < len(logits) // MAXIMA_GROUP:
                self._every = np.full(len(logits) // MAXIMA_GROUP, ALL_BITS)
            words = self._every
        addresses = {"x": logits, "words": words, "groups": groups, "out": out}
        record = schema.filled({name: each.ctypes.data for name, each in addresses.items()} | {"n_groups": n} | others)
        self._function(schema.name)(record.ctypes.data, 0, 0)
        return n

    def _function(self, name: str) -> Callable[[int, int, int], None]:
        if name not in self._functions:
            kernel: Kernel = find(name)
            self._store.load([kernel])
            self._functions[name] = self._store.function(kernel)
        return self._functions[name]


def spread_of(logits: np.ndarray) -> tuple[int, float]:
    """The number of logits that are more than minus infinity, and their variance."""
    numbers = logits[logits > -np.inf].astype(np.float64)
    return len(numbers), float(numbers.var()) if len(numbers) else 0.0
