"""Quantizing a file to a size or to a loss."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm import checks
from edgellm.convert.budget import Plan, measure_options, refuse_quantized, refuse_size, within_loss, within_size
from edgellm.convert.linears import is_linear
from edgellm.convert.parts import Part
from edgellm.convert.quantize import Progress, Quantized, check_importance, open_model, parts_of, write_quantized
from edgellm.convert.recipes import RECIPES, as_it_is, true_recipe
from edgellm.errors import UsageError
from edgellm.files import check_room, rename
from edgellm.formats.gguf import GGUFFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TRIES = 6  # files written until one has the wanted loss
NEAR_ENOUGH = 0.85  # of the loss that was allowed: finer steps are not worth another try


@dataclass(frozen=True)
class Budget:
    """A size of the file in bytes, or a mean divergence in nats: the other one is None."""

    n_bytes: int | None = None
    loss: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """ "90MB", "1.5GiB" or "kl=0.03". Raises UsageError."""
        if match := re.fullmatch(r"(?:kl|loss)=(\d+\.?\d*|\.\d+)", text, re.IGNORECASE):
            if float(match[1]) > 0:
                return cls(loss=float(match[1]))
        elif (n_bytes := checks.size(text)) is not None:
            return cls(n_bytes=n_bytes)
        raise UsageError(f"{text!r:.40} is no budget; expected a size such as 90MB, or a loss such as kl=0.03")


@dataclass(frozen=True)
class WithinBudget:
    """What was written, the plan behind it, and the divergence of the whole file, which the plan could only expect."""

    quantized: Quantized
    plan: Plan
    loss: float


def quantize_within(
    source: Path,
    target: Path,
    budget: Budget,
    divergence_with: Callable[[str, NDArray[Any]], float],
    divergence_of: Callable[[Path], float],
    *,
    importance: Mapping[str, NDArray[Any]] | None = None,
    n_threads: int | None = None,
    measuring: Progress | None = None,
    writing: Progress | None = None,
) -> WithinBudget:
    """Write `target` with the types that lose least within a size, or are smallest within a loss.

    divergence_with:  (matrix, raw) -> the divergence of `source` when that matrix alone is `raw` (in its own format).
    divergence_of:    the divergence of a written file from `source`.

    Raises UsageError when the budget cannot be met, or the source is quantized already.
    """
    target = Path(os.path.realpath(target))  # a link stays one
    with open_model(source, target) as file:
        parts = parts_of(file)
        matrices, other_bytes = _check(file, parts, target, budget, importance)
        options = measure_options(matrices, divergence_with, importance, measuring)
        work = target.with_name(f".{target.name}.{secrets.token_hex(4)}")

        def write(plan: Plan) -> tuple[Quantized, float]:
            formats = {part.name: as_it_is(part) for part in parts} | plan.formats
            recipe = true_recipe(RECIPES["F32"], parts, formats)
            written = write_quantized(file, work, formats, recipe, importance=importance,
                                      n_threads=n_threads, progress=writing)  # fmt: skip
            return written, divergence_of(work)

        try:
            if budget.n_bytes is not None:
                plan = within_size(matrices, options, other_bytes, budget.n_bytes)
                written, loss = write(plan)
            else:
                assert budget.loss is not None
                written, plan, loss = _search(matrices, options, other_bytes, budget.loss, write)
            rename(work, target)
        finally:
            work.unlink(missing_ok=True)
    return WithinBudget(replace(written, path=target), plan, loss)


def check_budget(
    source: Path, target: Path, budget: Budget, importance: Mapping[str, NDArray[Any]] | None = None
) -> None:
    """Raise what `quantize_within` would before it measures anything, which takes a model and minutes.

    UsageError for a size that the smallest types exceed, a source that is quantized already, an importance matrix of
    another model, FileProblem for a target that cannot be written.
    """
    with open_model(source, target) as file:
        _check(file, parts_of(file), target, budget, importance)


def _check(
    file: GGUFFile,
    parts: list[Part],
    target: Path,
    budget: Budget,
    importance: Mapping[str, NDArray[Any]] | None,
) -> tuple[list[Part], int]:
    """The matrices whose types are chosen, and the bytes that all else takes in the file to be."""
    matrices = [part for part in parts if is_linear(part)]
    refuse_quantized(matrices)
    check_importance(importance or {}, parts)
    others = [part for part in parts if not is_linear(part)]
    header = file.n_bytes - sum(part.tensor.n_bytes for part in parts)
    other_bytes = header + _slack(file) + sum(part.n_rows * as_it_is(part).row_bytes(part.n_cols) for part in others)
    if budget.n_bytes is not None:
        refuse_size(matrices, other_bytes, budget.n_bytes)
    check_room(target, other_bytes)
    return matrices, other_bytes


def _slack(file: GGUFFile) -> int:
    """What a file may take beyond its tensors and the header it had: padding of each, and two keys more."""
    return 32 * len(file.tensors) + 128


def _search(
    matrices: list[Part],
    options: Mapping[str, Any],
    other_bytes: int,
    allowed: float,
    write: Callable[[Plan], tuple[Quantized, float]],
) -> tuple[Quantized, Plan, float]:
    """A file with at most the allowed loss, and not much less: plans are corrected by what their files measure.

    Besides what a plan knows of, a file loses something by rounding activations, whatever its types.
    """
    tries: list[tuple[float, float]] = []  # (loss that was planned, loss that was measured)
    expected = allowed
    for attempt in range(MOST_TRIES):
        plan = within_loss(matrices, options, other_bytes, expected)
        written, loss = write(plan)
        is_smallest = all(choice.smaller is None for choice in plan.choices)
        if loss <= allowed and (loss >= NEAR_ENOUGH * allowed or is_smallest or attempt == MOST_TRIES - 1):
            return written, plan, loss
        if loss > allowed and all(choice.larger is None for choice in plan.choices):
            raise UsageError(
                f"kl={allowed:g} cannot be met: with the largest types this model still loses {loss:.4f}, most of it "
                "by rounding activations"
            )
        tries.append((plan.loss, loss))
        expected = _next_guess(tries, 0.97 * allowed)
    raise UsageError(f"no choice of types was found with a loss of at most {allowed:g}; try a larger one")


def _next_guess(tries: list[tuple[float, float]], wanted: float) -> float:
    """What to plan for, so that `wanted` will be measured: on a line through the last two tries."""
    planned, measured = tries[-1]
    if len(tries) == 1:
        return planned * min(4, wanted / measured)
    planned_before, measured_before = tries[-2]
    slope = (measured - measured_before) / (planned - planned_before) if planned != planned_before else 0
    return max(0.0, planned + (wanted - measured) / slope) if slope > 0 else 0.0
