"""Adapters at run time: tensors as kernels read them, and which of them a text is computed with.

Nothing is merged: the model's file stays mapped, and what an adapter adds stands beside it in programs of their own,
which are lowered when a batch first needs them. A batch may hold texts with different adapters.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm import checks
from edgellm.arch.adapters import read_adapter
from edgellm.engine.adapter_places import check_places, wholes_of
from edgellm.engine.adapter_set import Adapters, AdapterSet, Slot
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import MemoryLimitError, UsageError
from edgellm.formats.adapters import Adapter
from edgellm.formats.adapters import LowRank as Matrices
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor
from edgellm.graph.adapters import (
    EMBEDDED,
    EMBEDDING,
    Bottleneck,
    Change,
    ExpertLowRank,
    LowRank,
    Prefix,
    Prompt,
    keys_values_name,
)
from edgellm.graph.lowering import adapter_table
from edgellm.graph.program import aligned
from edgellm.quants import FORMATS

LARGEST_HALF = 65504.0  # in float16
PIECE_WEIGHTS = 1 << 20  # of the base model, dequantized at a time

_numbers = count(1)


class LoadedAdapter:
    """An adapter in memory, for one model.

    number:   its place in the order of loading, in which several change the same weight.
    replaced: the names of the tensors that it has in place of the model's.
    exact:    keep low-rank weights in float32; otherwise in float16, which is read in half the time and rounds them by
              less than inputs of int8 are.
    """

    def __init__(
        self, name: str, path: Path | None, adapter: Adapter, tensors: Mapping[str, Tensor], exact: bool = True
    ) -> None:
        self.name, self.path, self.number = name, path, next(_numbers)
        self.method, self.notes, self.n_virtual = adapter.method, adapter.notes, adapter.n_virtual
        try:
            self._others = dict(_others(adapter))
            self._matrices = {
                weight: (*_as_read(weight, change, exact), change.scale) for weight, change in adapter.weights.items()
            }
            self._replaced = {weight: tensor_of(weight, x) for weight, x in adapter.replaced.items()}
            self._lengths = {
                weight: _Lengths(
                    change, self._replaced.get(weight) or tensors[weight if weight in tensors else EMBEDDING]
                )
                for weight, change in adapter.weights.items()
                if change.magnitude is not None
            }
        except MemoryError:
            raise MemoryLimitError(f"there is not enough memory for the adapter {name!r:.60}") from None

    def __repr__(self) -> str:
        return f"<LoadedAdapter {self.name!r}, {self.method}>"

    @cached_property
    def digest(self) -> str:
        """The same for the same weights, in any process."""
        found = hashlib.blake2b(digest_size=16)
        for name, change in self.changes(1.0 if self.is_dora else None, ""):
            found.update(f"{name} {type(change).__name__}".encode())
            for value in vars(change).values():
                found.update(
                    np.ascontiguousarray(value.raw).data if isinstance(value, Tensor) else repr(value).encode()
                )
        return found.hexdigest()

    @property
    def is_dora(self) -> bool:
        return bool(self._lengths)

    @property
    def replaced(self) -> set[str]:
        return set(self._replaced)

    def check_scale(self, scale: float) -> None:
        """Raise UsageError for a scale with which a magnitude means nothing, or what is there or not."""
        if self._others and scale != 1:
            raise UsageError(
                f"adapters has {self.name!r:.60} with a scale of {scale:g}, and what it holds ({self.method}) is there "
                "or not; choose 1, or 0 to leave it out",
                parameter="adapters",
            )
        for lengths in self._lengths.values():
            lengths.columns(scale)

    def changes(self, scale: float | None, table: str) -> Iterator[tuple[str, Change]]:
        """What is changed about nodes, by their names; `table` says how much every row of a batch has of it.

        scale:  what the table says, for an adapter whose magnitudes depend on it.
        """
        yield from wholes_of(self._replaced, table).items()
        yield from self.low_ranks(scale, table)
        for name, in_table in self._others.items():
            yield name, in_table(table)

    def low_ranks(self, scale: float | None = None, table: str | None = None) -> Iterator[tuple[str, Change]]:
        """The same without whole weights. No table is all of it, for every row."""
        for weight, (a, b, own_scale) in self._matrices.items():
            columns = None
            if (lengths := self._lengths.get(weight)) is not None:
                columns = tensor_of(f"{weight}.columns", lengths.columns(1.0 if scale is None else scale))
            kind = ExpertLowRank if len(a.shape) == 3 else LowRank
            yield weight, kind(a, b, own_scale, table, columns)


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


def _others(adapter: Adapter) -> Iterator[tuple[str, Callable[[str | None], Change]]]:
    """What is changed about nodes that is no change of a weight, by their names, given the table that it goes by."""
    if adapter.prompt is not None:
        yield EMBEDDED, partial(Prompt, tensor_of("prompt", adapter.prompt))
    for index, layer in enumerate(adapter.prefix):
        name = keys_values_name(index)
        yield name, partial(Prefix, tensor_of(f"{name}.k", layer.keys), tensor_of(f"{name}.v", layer.values))
    for name, part in adapter.bottlenecks.items():
        down, up = tensor_of(f"{name}.down", part.down), tensor_of(f"{name}.up", part.up.T)
        biases = tensor_of(f"{name}.down_bias", part.down_bias), tensor_of(f"{name}.up_bias", part.up_bias)
        yield name, partial(Bottleneck, down, biases[0], up, biases[1], part.activation)


def _as_read(weight: str, change: Matrices, exact: bool) -> tuple[Tensor, Tensor]:
    """The two matrices as nodes want them, see `graph.adapters.LowRank` and `ExpertLowRank`."""
    first, second = (change.b, change.a) if weight == EMBEDDING else (change.a, change.b)
    if weight != EMBEDDING and not change.is_of_experts:
        second = second.T
    kind = "F32" if exact or max(np.abs(first).max(), np.abs(second).max()) >= LARGEST_HALF else "F16"
    return tensor_of(f"{weight}.lora_a", first, kind), tensor_of(f"{weight}.lora_b", second, kind)


def tensor_of(name: str, x: NDArray[np.float32], kind: str = "F32") -> Tensor:
    """A copy of an array as a tensor that kernels read, from a cache line on."""
    block_format = FORMATS[kind]
    raw = aligned(x.size * block_format.block_bytes)
    raw[:] = block_format.quantize(np.ascontiguousarray(x)).reshape(-1)
    rows = raw.reshape(-1, block_format.row_bytes(x.shape[-1])) if x.ndim > 1 else raw
    return Tensor(name, x.shape, block_format, rows)


def changes_of(slots: Iterable[Slot]) -> dict[str, list[Change]]:
    """What stands beside the nodes of each weight, in the order of the slots, of which each has a table of its own."""
    changes: dict[str, list[Change]] = {}
    for index, slot in enumerate(slots):
        for weight, change in slot.adapter.changes(slot.scale, adapter_table(index).name):
            changes.setdefault(weight, []).append(change)
    return changes


def load_into(
    adapters: Adapters, scheduler: Scheduler, file: GGUFFile, source: Any, name: str | None, replace: bool
) -> str:
    """See `Model.load_adapter`."""
    found, path = _open(source, file)
    found.refuse_score("loaded to write texts with")
    name = checks.text("name", found.name if name is None else name)
    before = adapters.loaded.get(name)
    if not name:
        raise checks.wrong("name", name, "a name for the adapter")
    if before and not replace:
        raise UsageError(
            f"name is {name!r:.60}, and an adapter is called that; unload it first, or give another name",
            parameter="name",
        )
    check_places(dataclasses.replace(found, name=name), (scheduler.runner.graphs.body, scheduler.runner.graphs.head))
    is_exact = scheduler.runner.target.activations == "f32"
    adapter = LoadedAdapter(name, path, found, file.tensors, is_exact)
    with scheduler.alone():
        scheduler.runner.variant({AdapterSet(((adapter, 1.0),))})  # compiles what is not compiled yet
        if before:
            scheduler.forget(adapters.remove(name))
        adapters.add(adapter)
    return name


def _open(source: Any, file: GGUFFile) -> tuple[Adapter, Path | None]:
    """The adapter that somebody names or has, checked against the model."""
    if isinstance(source, Adapter):
        source.check()
        source.check_fits(file.get("general.architecture", str), file.tensors)
        return source, None
    path = checks.path("path", source)
    try:
        adapter = read_adapter(path, file.metadata, file.tensors)
    except MemoryError:
        raise MemoryLimitError(f"{path}: there is not enough memory for this adapter") from None
    return dataclasses.replace(adapter, name=path.resolve().name.removesuffix(".gguf")), path
