"""Looking inside a model: values by their names read, replaced, or sent through the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.engine.runner import HEAD_TOKENS, Runner, Span, Variant
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import UsageError
from edgellm.formats.tensor import Tensor
from edgellm.graph import Value
from edgellm.graph.program import RowMemory

if TYPE_CHECKING:
    from edgellm.engine.square_sums import SquareSums


def look_inside(
    scheduler: Scheduler,
    token_ids: list[int],
    taps: Iterable[str],
    bind: Mapping[str, np.ndarray],
    adapters: AdapterSet = NO_ADAPTERS,
) -> dict[str, np.ndarray]:
    """See `Model.run`."""
    with scheduler.alone():
        variant = scheduler.runner.variant({adapters})
        return _look_inside(scheduler, token_ids, taps, bind, adapters, variant)


def _look_inside(
    scheduler: Scheduler,
    token_ids: list[int],
    taps: Iterable[str],
    bind: Mapping[str, np.ndarray],
    adapters: AdapterSet,
    variant: Variant,
) -> dict[str, np.ndarray]:
    runner, values, n_virtual = scheduler.runner, variant.graphs.values, adapters.n_virtual
    wanted = _matching(values, taps)
    if not isinstance(bind, Mapping):
        raise UsageError(f"bind is {bind!r:.60}; expected arrays by the names of what they are bound to")
    given = {
        values[name]: _rows_of(name, values[name], rows, len(token_ids))
        for name, rows in bind.items()
        if name in values
    }
    if given and n_virtual:
        raise UsageError(
            f"{next(iter(given)).name!r} is bound, and the adapter puts {n_virtual} tokens of its own before the text, "
            "for which nobody gives it; bind weights alone, or leave the adapter out"
        )
    weights = {name: raw for name, raw in bind.items() if name not in values}
    if both := [value.name for value in given if value in wanted.values()]:
        raise UsageError(f"{both[0]!r} is both tapped and bound; what is bound is known already")
    with _bound(runner, weights, known=values):
        memory = {value: RowMemory(value.width, runner.n_batch) for value in given}
        addresses = {value: place.address for value, place in memory.items()}
        programs = runner.lowered_programs(list(wanted.values()), addresses, variant=variant)
        with runner.replaced(variant, programs):
            ids = [0] * n_virtual + token_ids
            found = _collect(scheduler, ids, wanted, given, memory, adapters, variant)
            return {name: rows[n_virtual:] for name, rows in found.items()}


def unembed(scheduler: Scheduler, states: np.ndarray, adapters: AdapterSet = NO_ADAPTERS) -> np.ndarray:
    """See `Model.unembed`."""
    runner = scheduler.runner
    states = _rows_of("states", runner.graphs.hidden_input, states, None)
    memory = RowMemory(runner.graphs.hidden_input.width, HEAD_TOKENS)
    result = np.empty((len(states), runner.n_vocab), np.float32)
    with scheduler.alone():
        variant = runner.variant({adapters})
        with variant.programs.head.bound({variant.graphs.hidden_input: memory.array}):
            for start in range(0, len(states), HEAD_TOKENS):
                part = states[start : start + HEAD_TOKENS]
                memory.fill(part)
                runner.run_head_alone(variant, len(part), adapters)
                result[start : start + len(part)] = variant.programs.head.view(variant.graphs.logits, len(part))
    return result


@contextmanager
def bound_weights(scheduler: Scheduler, memory: Mapping[str, np.ndarray]) -> Iterator[None]:
    """See `Model.bind`."""
    with scheduler.alone(), _bound(scheduler.runner, memory):
        yield


@contextmanager
def square_sums(scheduler: Scheduler, adapters: AdapterSet = NO_ADAPTERS) -> Iterator[SquareSums]:
    """See `Model.square_sums`."""
    with scheduler.alone(), scheduler.runner.square_sums(adapters) as sums:
        yield sums


@contextmanager
def _bound(runner: Runner, memory: Mapping[str, np.ndarray], known: Iterable[str] = ()) -> Iterator[None]:
    """known: other names that could have been meant."""
    if not isinstance(memory, Mapping):
        raise UsageError(f"expected arrays by the names of what they are bound to; found {memory!r:.60}")
    places: dict[Tensor | Value, np.ndarray] = {}
    read = {
        tensor for graph in (runner.graphs.body, runner.graphs.head) for node in graph.nodes for tensor in node.weights
    }
    for name, raw in memory.items():
        tensor = runner.tensors.get(name)
        if tensor is None:
            raise UsageError(f"the model has no value or tensor {name!r}{_nearest(name, [*known, *runner.tensors])}")
        if tensor not in read:
            raise UsageError(f"{name!r} is used before the model runs, not while it does, and cannot be bound")
        raw = _array_of(name, raw)
        if raw.dtype != np.uint8 or raw.nbytes != tensor.n_bytes:
            raise UsageError(
                f"{name!r} is bound to {raw.nbytes} bytes of {raw.dtype}; "
                f"expected {tensor.n_bytes} bytes of uint8, in its own format {tensor.format}"
            )
        places[tensor] = np.ascontiguousarray(raw)
    with runner.bound(places):
        yield


def _collect(
    scheduler: Scheduler,
    token_ids: list[int],
    wanted: dict[str, Value],
    given: dict[Value, np.ndarray],
    memory: dict[Value, RowMemory],
    adapters: AdapterSet,
    variant: Variant,
) -> dict[str, np.ndarray]:
    runner, graphs, programs = scheduler.runner, variant.graphs, variant.programs
    result = {name: np.empty((len(token_ids), value.width), np.float32) for name, value in wanted.items()}
    of_body, of_head = (
        {name: value for name, value in wanted.items() if value.graph is graph} for graph in (graphs.body, graphs.head)
    )
    body_given, head_given = (
        [value for value in given if value.graph is graph] for graph in (graphs.body, graphs.head)
    )
    sequence = runner.cache.sequence(adapters)
    try:
        for start in range(0, len(token_ids), runner.n_batch):
            piece = token_ids[start : start + runner.n_batch]
            for value in body_given:
                memory[value].fill(given[value][start : start + len(piece)])
            scheduler.reserve(sequence, len(piece))
            runner.run_body([Span(sequence, piece)])
            sequence.append(piece)
            for name, value in of_body.items():
                result[name][start : start + len(piece)] = programs.body.view(value, len(piece))
            for first in range(0, len(piece) if of_head else 0, HEAD_TOKENS):
                at = start + first
                n = min(HEAD_TOKENS, len(piece) - first)
                for value in head_given:
                    memory[value].fill(given[value][at : at + n])
                runner.run_head(range(first, first + n))
                for name, value in of_head.items():
                    result[name][at : at + n] = programs.head.view(value, n)
    finally:
        sequence.release()
    return result


def _matching(values: Mapping[str, Value], patterns: Iterable[str]) -> dict[str, Value]:
    """The values that any of some patterns names, in the order of the model."""
    try:
        patterns = [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
    except TypeError:
        raise UsageError(f"taps is {patterns!r:.60}; expected names of values") from None
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in values):
            raise UsageError(f"the model has no value {pattern!r}{_nearest(pattern, values)}")
    return {name: value for name, value in values.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _nearest(name: str, names: Iterable[str]) -> str:
    """What may have been meant instead."""
    import difflib

    near = difflib.get_close_matches(str(name), list(names), n=3, cutoff=0.5)
    return f"; nearest are {', '.join(near)}" if near else ""


def _rows_of(name: str, value: Value, rows: np.ndarray, n_tokens: int | None) -> np.ndarray:
    """Rows that somebody gives for a value, checked; n_tokens of None: any number."""
    rows = _array_of(name, rows)
    is_matrix = rows.ndim == 2 and rows.shape[1] == value.width and n_tokens in (None, len(rows))
    if not is_matrix or rows.dtype != np.float32:
        wanted = f"float32 [{'n' if n_tokens is None else n_tokens}, {value.width}]"
        raise UsageError(f"{name!r} is given as {rows.dtype} {list(rows.shape)}; expected {wanted}")
    return rows


def _array_of(name: str, rows: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(rows)
    except ValueError:
        raise UsageError(f"{name!r} is given as rows of different lengths; expected an array") from None
