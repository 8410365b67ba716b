"""Choosing a type for every matrix: the least loss within a size, or the smallest size within a loss.

The divergence that a small change of the weights causes grows with the square of the change, and what changes of
different matrices cause adds up, as they have nothing to do with each other. So one measurement for each matrix
tells all: quantize it alone, coarsely, and see what it costs. For any other type the cost is in proportion to the
squared error that the type makes in this matrix, which needs no run of the model.

What is left is a choice with one price: start with the smallest types, and give more bits where a byte saves most,
until the size is used up or the loss is low enough.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.convert.parts import Part
from edgellm.convert.rows import PIECE_WEIGHTS, Encoder, rows_of
from edgellm.errors import UsageError, size_text
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

# From the smallest on; of these, a matrix can have the ones whose blocks divide its rows.
CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0", "F16")
SAMPLE_WEIGHTS = 1 << 19  # of a matrix, on which the errors of the types are compared


@dataclass(frozen=True)
class Option:
    """One type for one matrix: its size, and the divergence that it is expected to cause."""

    format: BlockFormat
    n_bytes: int
    loss: float


@dataclass(frozen=True)
class Choice:
    """What was chosen for a matrix, and what one type less and one more would have been worth."""

    part: Part
    option: Option
    smaller: Option | None
    larger: Option | None


@dataclass(frozen=True)
class Plan:
    """A type for every matrix.

    n_bytes:  of all weights, those of one dimension included. loss: the sum of what is expected of each matrix.
    """

    choices: Sequence[Choice]
    n_bytes: int
    loss: float

    @property
    def formats(self) -> dict[str, BlockFormat]:
        return {choice.part.name: choice.option.format for choice in self.choices}


def measure_options(
    parts: Sequence[Part],
    divergence_with: Callable[[str, NDArray[Any]], float],
    importance: Mapping[str, NDArray[Any]] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, list[Option]]:
    """What each type would cost in each matrix, from the smallest on, without those that another one beats.

    parts:            the matrices, in F32, F16 or BF16.
    divergence_with:  (name, raw) -> the model's mean divergence when that matrix alone is `raw`, in its own format.

    Raises UsageError for matrices that are quantized already.
    """
    refuse_quantized(parts)
    encoder = Encoder(importance or {})
    options = {}
    for done, part in enumerate(parts):
        if progress:
            progress(done, len(parts), part.name)
        options[part.name] = _worth_having(_options_of(part, encoder, divergence_with, importance or {}))
    if progress:
        progress(len(parts), len(parts), "")
    return options


def refuse_quantized(parts: Sequence[Part]) -> None:
    """Raise UsageError for matrices that are quantized already."""
    for part in parts:
        if not isinstance(part.tensor.format, FloatFormat):
            raise UsageError(
                f"{part.name} is {part.tensor.format} already; a budget is divided best from the original weights, "
                "in F32, F16 or BF16"
            )


def refuse_size(parts: Sequence[Part], other_bytes: int, n_bytes: int) -> None:
    """Raise UsageError when even the smallest types need more than n_bytes, of which other_bytes are taken already."""
    least = other_bytes + sum(part.n_rows * _formats_of(part)[0].row_bytes(part.n_cols) for part in parts)
    if least > n_bytes:
        raise UsageError(
            f"a budget of {size_text(n_bytes)}; with the smallest types this model takes {size_text(least)}"
        )


def _formats_of(part: Part) -> list[BlockFormat]:
    """The formats that a matrix can have, the smallest first."""
    return [FORMATS[name] for name in CANDIDATES if part.n_cols % FORMATS[name].block_size == 0]


def _options_of(
    part: Part,
    encoder: Encoder,
    divergence_with: Callable[[str, NDArray[Any]], float],
    importance: Mapping[str, NDArray[Any]],
) -> list[Option]:
    formats = _formats_of(part)
    weight = importance.get(part.name, np.ones(part.n_cols, np.float32))
    weight = weight.reshape(-1, part.n_cols)[:, None]  # of each matrix of a stack
    step = max(1, part.n_rows * part.n_cols // SAMPLE_WEIGHTS)
    sample = part.sample(step)
    x = sample.tensor.dequantize().reshape(sample.n_matrices, -1, part.n_cols)
    errors = {}
    for block_format in formats:
        rounded = block_format.dequantize(encoder.encode(sample, slice(0, sample.n_rows), block_format))
        errors[block_format] = float((np.square(rounded.reshape(x.shape) - x, dtype=np.float64) * weight).mean())
    probe = formats[0]
    coarse = np.empty_like(part.tensor.raw)
    for rows in rows_of(part, PIECE_WEIGHTS):
        coarse[rows] = part.tensor.format.quantize(probe.dequantize(encoder.encode(part, rows, probe)))
    measured = divergence_with(part.name, coarse)
    per_error = measured / errors[probe] if errors[probe] else 0.0
    return [
        Option(block_format, part.n_rows * block_format.row_bytes(part.n_cols), per_error * error)
        for block_format, error in errors.items()
    ]


def _worth_having(options: list[Option]) -> list[Option]:
    """The lower convex hull over size and loss: each step up saves less per byte than the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.n_bytes, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _gain(smaller: Option, larger: Option) -> float:
    """The loss that each byte more saves."""
    return (smaller.loss - larger.loss) / max(1, larger.n_bytes - smaller.n_bytes)


def within_size(parts: Sequence[Part], options: Mapping[str, list[Option]], other_bytes: int, n_bytes: int) -> Plan:
    """The least loss in at most n_bytes, of which other_bytes are taken already (by norms, and by the header).

    Raises UsageError when even the smallest types need more.
    """
    refuse_size(parts, other_bytes, n_bytes)
    level = dict.fromkeys(options, 0)
    used = other_bytes + sum(found[0].n_bytes for found in options.values())
    steps = [(-_gain(*found[:2]), name) for name, found in options.items() if len(found) > 1]
    heapq.heapify(steps)
    while steps:  # the step that saves most per byte, again and again
        _, name = heapq.heappop(steps)
        here, there = options[name][level[name] : level[name] + 2]
        if used + there.n_bytes - here.n_bytes > n_bytes:
            continue  # another matrix may still have a step that fits
        level[name] += 1
        used += there.n_bytes - here.n_bytes
        if len(options[name]) > level[name] + 1:
            heapq.heappush(steps, (-_gain(*options[name][level[name] : level[name] + 2]), name))
    by_name = {part.name: part for part in parts}
    choices = [
        Choice(by_name[name], found[level[name]], *_neighbours(found, level[name])) for name, found in options.items()
    ]
    return Plan(choices, used, sum(choice.option.loss for choice in choices))


def within_loss(parts: Sequence[Part], options: Mapping[str, list[Option]], other_bytes: int, loss: float) -> Plan:
    """The smallest size whose expected divergence is at most `loss`, or the least loss there is."""
    least, most = (other_bytes + sum(found[end].n_bytes for found in options.values()) for end in (0, -1))
    plan = within_size(parts, options, other_bytes, most)
    while least < most and plan.loss <= loss:  # halve the sizes in question
        middle = (least + most) // 2
        candidate = within_size(parts, options, other_bytes, middle)
        if candidate.loss <= loss:
            plan, most = candidate, middle
        else:
            least = middle + 1
    return plan


def _neighbours(found: list[Option], level: int) -> tuple[Option | None, Option | None]:
    return found[level - 1] if level else None, found[level + 1] if level + 1 < len(found) else None
