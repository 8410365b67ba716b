"""What quantizing measures with a model: how much hangs on each matrix, how far a file is from the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgellm.convert.budgeted import Budget, WithinBudget, check_budget, quantize_within
from edgellm.convert.quantize import Progress
from edgellm.engine import Model
from edgellm.evaluate import ORDINARY_TEXT, Divergence, Sensitivity, divergence
from edgellm.evaluate.sensitivity import DEFAULT_WINDOW
from edgellm.files import AnyPath
from edgellm.params import RuntimeConfig

Loader = Callable[[Path, RuntimeConfig], Model]
Windows = Callable[[int, int, "float | None"], None]  # windows done and in all, and a figure so far


class Original:
    """The model that files are made from, loaded to compare with, and a text to compare on.

    text:     like what the model is used for; None is an ordinary page.
    runtime:  how it is run; its n_ctx is the length of a window.
    load:     opens a model; who shows progress has one of their own.
    """

    def __init__(
        self, path: Path, text: str | None = None, runtime: RuntimeConfig | None = None, load: Loader = Model
    ) -> None:
        self.path, self._load = path, load
        self._runtime = replace(runtime or RuntimeConfig(), n_ctx=DEFAULT_WINDOW)
        self.model = load(path, self._runtime)
        text = ORDINARY_TEXT.read_text(encoding="utf-8") if text is None else text
        self.token_ids: Sequence[int] = self.model.tokenize(text, add_special=True)

    def divergence_of(self, path: Path, progress: Windows | None = None) -> Divergence:
        """How far another file is from the original, on the same text."""
        with self._load(path, self._runtime) as other:
            return divergence(other, self.model, self.token_ids, DEFAULT_WINDOW, progress=progress)

    def sensitivity(self) -> Sensitivity:
        """How much of what the model knows hangs on each of its matrices."""
        return Sensitivity(self.model, self.token_ids)

    def __enter__(self) -> Original:
        return self

    def __exit__(self, *exception: object) -> None:
        self.model.close()


def quantize_to_budget(
    source: AnyPath,
    target: AnyPath,
    budget: str | Budget,
    *,
    text: str | None = None,
    importance: Mapping[str, NDArray[Any]] | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> WithinBudget:
    """Write `target` with the types that lose least within a size, or are smallest within a loss.

    budget:      "90MB", "1.5GiB" or "kl=0.03", a mean Kullback-Leibler divergence in nats.
    text:        like what the model is used for, to measure on; None is an ordinary page.
    importance:  an importance matrix, mean squares of inputs by the name of the weight.

    Loads the original and measures each of its matrices, which takes minutes. Before that, raises UsageError for a
    budget that cannot be met or a source that is quantized already, FileProblem for files that cannot be used.
    """
    path, target = Path(source), Path(target)
    budget = budget if isinstance(budget, Budget) else Budget.parse(budget)
    check_budget(path, target, budget, importance)
    with Original(path, text, RuntimeConfig(n_threads=n_threads)) as original:
        return quantize_within(
            path,
            target,
            budget,
            original.sensitivity().of,
            lambda written: original.divergence_of(written).mean,
            importance=importance,
            n_threads=n_threads,
            measuring=progress,
            writing=progress,
        )
