"""Which adapters a model has, and which of them a text is computed with, and how much of each.

This is all that a model without adapters needs to know of them; `engine.adapters` loads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from edgellm.dataclass import dataclass
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.graph.adapters import Change

MOST_TOGETHER = 8  # adapters in one batch


class Adapter(Protocol):
    """An adapter that is loaded, see `engine.adapters`.

    number:    its place in the order of loading. digest: the same for the same weights.
    is_dora:   whether what it is multiplied by depends on its scale.
    replaced:  the names of the tensors that it has in place of the model's.
    n_virtual: with how many tokens of its own every text begins that is computed with it.
    """

    number: int
    n_virtual: int
    notes: tuple[str, ...]

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def is_dora(self) -> bool: ...

    @property
    def replaced(self) -> set[str]: ...

    def check_scale(self, scale: float) -> None:
        """Raise UsageError for a scale with which it means nothing."""

    def changes(self, scale: float | None, table: str) -> Iterator[tuple[str, Change]]:
        """What stands beside the nodes of a weight, by its name."""


class Slot(NamedTuple):
    """An adapter as it stands in a program, where a table of the batch says how much every row has of it.

    scale:  for DoRA, whose magnitudes depend on it; None where the table alone has it.
    """

    adapter: Adapter
    scale: float | None

    @property
    def order(self) -> tuple[int, float]:
        return self.adapter.number, self.scale or 0.0


@dataclass(frozen=True)
class AdapterSet:
    """The adapters of a text with their scales, in the order of loading; no scale is 0."""

    uses: tuple[tuple[Adapter, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.uses)

    @cached_property
    def scales(self) -> dict[Slot, float]:
        """By the slots that they need in a program."""
        return {Slot(adapter, scale if adapter.is_dora else None): scale for adapter, scale in self.uses}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """These slots, in one order."""
        return tuple(sorted(self.scales, key=lambda slot: slot.order))

    @cached_property
    def n_virtual(self) -> int:
        """Tokens that stand before a text, and belong to an adapter."""
        return sum(adapter.n_virtual for adapter, _ in self.uses)

    @cached_property
    def _own(self) -> tuple[float, ...]:
        """The scales of its own slots."""
        return tuple(self.scales[slot] for slot in self.slots)

    def uses_of(self, slots: tuple[Slot, ...], start: int, n: int) -> Sequence[float | NDArray[np.float32]]:
        """How much the n tokens from a position on have of each adapter, or which of its own tokens they are.

        Of an adapter, one number for all of these tokens, or an array [n] where they differ.
        """
        if slots == self.slots and not self.n_virtual:  # as it mostly is, in every step
            return self._own
        return [self._use(slot, start, n) for slot in slots]

    def _use(self, slot: Slot, start: int, n: int) -> float | NDArray[np.float32]:
        if slot in self.scales and slot.adapter.n_virtual:
            return places(start, n, slot.adapter.n_virtual)
        return self.scales.get(slot, 0.0)

    def has(self, adapter: Adapter) -> bool:
        return any(other is adapter for other, _ in self.uses)


NO_ADAPTERS = AdapterSet()


def slots_of(sets: Collection[AdapterSet]) -> tuple[Slot, ...]:
    """All that a batch with these sets needs, in one order."""
    if len(sets) == 1:  # as it mostly is, in every step
        return next(iter(sets)).slots
    return tuple(sorted({slot for adapters in sets for slot in adapters.scales}, key=lambda slot: slot.order))


class Adapters:
    """The adapters of a model by their names, and which of them texts have unless they ask for others.

    Nothing in here is changed, only replaced by what is new: so any thread may look while another one loads.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Adapter] = {}
        self.usual = NO_ADAPTERS

    def add(self, adapter: Adapter) -> None:
        self.loaded = {**self.loaded, adapter.name: adapter}

    def remove(self, name: str) -> Adapter:
        """Raises UsageError for a name that no adapter has."""
        adapter = self.find(name, "name")
        self.usual = AdapterSet(tuple(use for use in self.usual.uses if use[0] is not adapter))
        self.loaded = {other: found for other, found in self.loaded.items() if found is not adapter}
        return adapter

    def find(self, name: str, parameter: str = "adapters") -> Adapter:
        found = self.loaded.get(name)
        if found is None:
            known = f"loaded are {', '.join(map(repr, self.loaded))}" if self.loaded else "none is loaded"
            raise UsageError(f"{parameter} has {name!r:.60}, which is no adapter here; {known}", parameter=parameter)
        return found

    def chosen(self, scales: Mapping[str, float] | None) -> AdapterSet:
        """Those of some names with their scales; None: the usual ones.

        Raises UsageError for names that no adapter has, more than MOST_TOGETHER, and sets that cannot be.
        """
        if scales is None:
            return self.usual
        uses = [(self.find(name), scale) for name, scale in scales.items()]
        uses = sorted(((adapter, scale) for adapter, scale in uses if scale != 0), key=lambda use: use[0].number)
        if len(uses) > MOST_TOGETHER:
            raise UsageError(f"adapters names {len(uses)}; up to {MOST_TOGETHER} can be together", parameter="adapters")
        refuse_two_wholes(uses)
        _refuse_halves_of_norms(uses)
        _refuse_two_beginnings(uses)
        for adapter, scale in uses:
            adapter.check_scale(scale)
        return AdapterSet(tuple(uses))


def places(start: int, n: int, n_virtual: int) -> NDArray[np.float32]:
    """Which of an adapter's own tokens stand at n positions of a text from `start` on: i for the i-th, 0 for none."""
    positions = np.arange(start + 1, start + n + 1, dtype=np.float32)
    return np.where(positions <= n_virtual, positions, np.float32(0))


def _refuse_two_beginnings(uses: Iterable[tuple[Adapter, float]]) -> None:
    """Raise UsageError where two adapters want a text to begin with their own tokens."""
    own = [adapter.name for adapter, _ in uses if adapter.n_virtual]
    if len(own) > 1:
        raise UsageError(
            f"adapters has {own[0]!r:.60} and {own[1]!r:.60}, which both put tokens of their own before a text; choose "
            "one of them",
            parameter="adapters",
        )


def _refuse_halves_of_norms(uses: Iterable[tuple[HasWholes, float]]) -> None:
    """Raise UsageError where two adapters hold the two weights of a norm: it is computed once for each adapter."""
    owners: dict[str, HasWholes] = {}
    for adapter, _ in uses:
        for module in sorted({name.rpartition(".")[0] for name in adapter.replaced if "norm" in name}):
            other = owners.setdefault(module, adapter)
            if other is not adapter:
                raise UsageError(
                    f"adapters has {other.name!r:.60} and {adapter.name!r:.60}, which hold the weight and the bias of "
                    f"one norm, {module!r}; choose one of them, or merge one into the model",
                    parameter="adapters",
                )


class HasWholes(Protocol):
    """An adapter, loaded or not: its name, and the names of the tensors that it has in place of the model's."""

    @property
    def name(self) -> str: ...

    @property
    def replaced(self) -> Iterable[str]: ...


def refuse_two_wholes(uses: Iterable[tuple[HasWholes, float]]) -> None:
    """Raise UsageError where a whole weight is asked for by halves, or by two adapters."""
    owners: dict[str, HasWholes] = {}
    for adapter, scale in uses:
        for weight in sorted(adapter.replaced):
            if scale != 1:
                raise UsageError(
                    f"adapters has {adapter.name!r} with a scale of {scale:g}, and it holds a whole {weight!r} in "
                    "place of the model's; choose 1, or 0 to leave it out",
                    parameter="adapters",
                )
            if weight in owners:
                raise UsageError(
                    f"adapters has {owners[weight].name!r} and {adapter.name!r}, which both hold a whole {weight!r}; "
                    "choose one of them",
                    parameter="adapters",
                )
            owners[weight] = adapter
