"""Adapters at run time: tensors as kernels read them, and which of them a text is computed with.

Nothing is merged: the model's file stays mapped, and what an adapter adds stands beside it in programs of their own,
which are lowered when a batch first needs them. A batch may hold texts with different adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import MemoryLimitError, UsageError
from edgellm.formats.adapters import Adapter
from edgellm.formats.adapters import LowRank as Matrices
from edgellm.formats.tensor import Tensor
from edgellm.graph.adapters import EMBEDDING, OUTPUT, Change, Instead, LowRank
from edgellm.graph.lowering import adapter_table
from edgellm.quants import FORMATS

MOST_TOGETHER = 8  # adapters in one batch
PIECE_WEIGHTS = 1 << 20  # of the base model, dequantized at a time

_numbers = count(1)


class LoadedAdapter:
    """An adapter in memory, for one model.

    number:   its place in the order of loading, in which several change the same weight.
    replaced: the names of the tensors that it has in place of the model's.
    """

    def __init__(self, name: str, path: Path | None, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
        self.name, self.path, self.number = name, path, next(_numbers)
        self.method, self.notes = adapter.method, adapter.notes
        try:
            self._matrices = {
                weight: (*_as_read(weight, change), change.scale) for weight, change in adapter.weights.items()
            }
            self._replaced = {weight: tensor_of(weight, x) for weight, x in adapter.replaced.items()}
            self._lengths = {
                weight: _Lengths(change, tensors[weight if weight in tensors else EMBEDDING])
                for weight, change in adapter.weights.items()
                if change.magnitude is not None
            }
        except MemoryError:
            raise MemoryLimitError(f"there is not enough memory for the adapter {name!r:.60}") from None

    def __repr__(self) -> str:
        return f"<LoadedAdapter {self.name!r}, {self.method}>"

    @property
    def is_dora(self) -> bool:
        return bool(self._lengths)

    @property
    def replaced(self) -> set[str]:
        return set(self._replaced)

    def changes(self, scale: float | None, table: str) -> Iterator[tuple[str, Change]]:
        """What stands beside the nodes of a weight, by its name; the table says how much every row of a batch has of it.

        scale:  what the table says, for an adapter whose magnitudes depend on it.
        """
        for weight, tensor in self._replaced.items():
            yield weight, Instead(tensor, table)
        for weight, (a, b, own_scale) in self._matrices.items():
            columns = None
            if (lengths := self._lengths.get(weight)) is not None:
                columns = tensor_of(f"{weight}.columns", lengths.columns(1.0 if scale is None else scale))
            yield weight, LowRank(a, b, own_scale, table, columns)


class _Lengths:
    """What the columns of a DoRA linear are multiplied by, for any scale.

    The rows of W + s * D have the squared lengths |W|^2 + 2 s (W, D) + s^2 |D|^2; the three are found once.
    """

    def __init__(self, change: Matrices, base: Tensor) -> None:
        assert change.magnitude is not None
        self._magnitude = change.magnitude.astype(np.float64)
        n_out, n_in = base.shape
        self._own, self._between = np.empty(n_out), np.empty(n_out)
        step = max(1, PIECE_WEIGHTS // n_in)
        b = change.b.astype(np.float64) * change.scale
        for start in range(0, n_out, step):
            rows = slice(start, min(start + step, n_out))
            w = base.format.dequantize(base.raw[rows])
            self._own[rows] = np.einsum("ij,ij->i", w, w, dtype=np.float64)
            self._between[rows] = np.einsum("ir,ir->i", w @ change.a.T, b[rows], dtype=np.float64)
        products = change.a.astype(np.float64) @ change.a.T.astype(np.float64)
        self._added = np.einsum("ir,rs,is->i", b, products, b, optimize=True)

    def columns(self, scale: float) -> NDArray[np.float32]:
        """float32 [n_out]: magnitudes divided by the lengths of the rows; 0 where a row has no length."""
        lengths = np.sqrt(np.maximum(0, self._own + 2 * scale * self._between + scale**2 * self._added))
        with np.errstate(divide="ignore", over="ignore"):
            columns = np.where(lengths > 0, self._magnitude / lengths, 0).astype(np.float32)
        if not np.isfinite(columns).all():
            raise UsageError(f"with a scale of {scale:g}, rows of the changed weights have no length")
        return columns


def _as_read(weight: str, change: Matrices) -> tuple[Tensor, Tensor]:
    """The two matrices as nodes want them, see `graph.adapters.LowRank`."""
    first, second = (change.b, change.a) if weight == EMBEDDING else (change.a, change.b.T)
    return tensor_of(f"{weight}.lora_a", first), tensor_of(f"{weight}.lora_b", second)


def tensor_of(name: str, x: NDArray[np.float32]) -> Tensor:
    """An array as a tensor of type F32 that kernels read."""
    raw = np.ascontiguousarray(x, "<f4").view(np.uint8)
    return Tensor(name, x.shape, FORMATS["F32"], raw.reshape(-1, x.shape[-1] * 4) if x.ndim > 1 else raw)


@dataclass(frozen=True)
class Slot:
    """An adapter as it stands in a program: with a table of the batch for its scales.

    scale:  for DoRA, whose magnitudes depend on it; None where the table alone has it.
    """

    adapter: LoadedAdapter
    scale: float | None

    @property
    def order(self) -> tuple[int, float]:
        return self.adapter.number, self.scale or 0.0


@dataclass(frozen=True)
class AdapterSet:
    """The adapters that a text is computed with, and how much of each, in the order of loading; no scale is 0."""

    uses: tuple[tuple[LoadedAdapter, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.uses)

    @cached_property
    def scales(self) -> dict[Slot, float]:
        """By the slots that it needs in a program."""
        return {Slot(adapter, scale if adapter.is_dora else None): scale for adapter, scale in self.uses}


NO_ADAPTERS = AdapterSet()


def slots_of(sets: Iterable[AdapterSet]) -> tuple[Slot, ...]:
    """All that a batch with these sets needs, in one order."""
    return tuple(sorted({slot for adapters in sets for slot in adapters.scales}, key=lambda slot: slot.order))


def changes_of(slots: Iterable[Slot]) -> dict[str, list[Change]]:
    """What stands beside the nodes of each weight, in the order of the slots, of which each has a table of its own."""
    changes: dict[str, list[Change]] = {}
    for index, slot in enumerate(slots):
        for weight, change in slot.adapter.changes(slot.scale, adapter_table(index).name):
            changes.setdefault(weight, []).append(change)
    return changes


class Adapters:
    """The adapters of a model by their names, and which of them texts have unless they ask for others."""

    def __init__(self) -> None:
        self.loaded: dict[str, LoadedAdapter] = {}
        self.usual = NO_ADAPTERS

    def add(self, adapter: LoadedAdapter) -> None:
        self.loaded[adapter.name] = adapter

    def remove(self, name: str) -> LoadedAdapter:
        """Raises UsageError for a name that no adapter has."""
        adapter = self.find(name)
        self.usual = AdapterSet(tuple(use for use in self.usual.uses if use[0] is not adapter))
        del self.loaded[name]
        return adapter

    def find(self, name: str) -> LoadedAdapter:
        if name not in self.loaded:
            known = f"loaded are {', '.join(map(repr, self.loaded))}" if self.loaded else "none is loaded"
            raise UsageError(f"adapters names {name!r:.60}; {known}", parameter="adapters")
        return self.loaded[name]

    def chosen(self, scales: Mapping[str, float] | None) -> AdapterSet:
        """Those of some names with their scales; None: the usual ones.

        Raises UsageError for names that no adapter has, more than MOST_TOGETHER, and sets that cannot be.
        """
        if scales is None:
            return self.usual
        uses = [(self.find(name), scale) for name, scale in scales.items() if scale != 0]
        chosen = AdapterSet(tuple(sorted(uses, key=lambda use: use[0].number)))
        if len(uses) > MOST_TOGETHER:
            raise UsageError(f"adapters names {len(uses)}; up to {MOST_TOGETHER} can be together", parameter="adapters")
        _refuse_two_wholes(chosen)
        for slot in chosen.scales:
            if slot.scale is not None:
                for _ in slot.adapter.changes(slot.scale, ""):  # or its columns are no numbers
                    pass
        return chosen


def _refuse_two_wholes(chosen: AdapterSet) -> None:
    """Raise UsageError where a whole weight is asked for by halves, or by two adapters."""
    owners: dict[str, LoadedAdapter] = {}
    for adapter, scale in chosen.uses:
        for weight in sorted(adapter.replaced):
            if scale != 1:
                raise UsageError(
                    f"adapters has {adapter.name!r} with a scale of {scale:g}, and it holds a whole {weight!r} in place of "
                    "the model's; choose 1, or 0 to leave it out",
                    parameter="adapters",
                )
            if weight in owners:
                raise UsageError(
                    f"adapters has {owners[weight].name!r} and {adapter.name!r}, which both hold a whole {weight!r}; "
                    "choose one of them",
                    parameter="adapters",
                )
            owners[weight] = adapter


__all__ = ["NO_ADAPTERS", "OUTPUT", "AdapterSet", "Adapters", "LoadedAdapter", "Slot", "changes_of", "slots_of"]
