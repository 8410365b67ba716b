"""Answers to some prompts by the model as it is at the moment, with their rewards: what a few updates learn from.

They are kept in the run's folder: for people, who should look at what is rewarded, and for a run that goes on in the
middle of several updates from the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgellm.errors import FileProblem
from edgellm.train.data import order
from edgellm.train.documents import Documents
from edgellm.train.preference.numbers import Floats
from edgellm.train.sealed import read_sealed, write_sealed

FOLDER = "answers"
_NAME = re.compile(r"step-(\d{8,})\.json")


@dataclass
class Answer:
    """One answer. Lists of numbers have one for each of its tokens; None where nobody needs them.

    example:    which prompt it answers. text: without the tokens that end it.
    ids:        of prompt and answer; the first n_prompt are the prompt.
    nll:        negative log-likelihoods when it was sampled. reference: by the model without the adapter.
    values:     what the value head said.
    """

    example: int
    text: str
    ids: list[int]
    n_prompt: int
    reward: float
    nll: list[float] | None = None
    reference: list[float] | None = None
    values: list[float] | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.ids) - self.n_prompt

    @property
    def document(self) -> Documents:
        return Documents.of(self.ids, np.arange(len(self.ids)) >= self.n_prompt)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Sampled(Documents):
    """Some answers as one pass, with what the loss of their tokens needs: float64 [n_targets] each.

    n_answers:   how many these are.
    weights_of_tokens: what each token counts in the sum over answers.
    old:         log-likelihoods when they were sampled; None for those of the pass itself, which are the same.
    reference:   by the model without the adapter; None where nobody compares with it.
    returns, old_values: for the value head; None where there is none.
    """

    n_answers: int
    weights_of_tokens: Floats
    advantages: Floats
    old: Floats | None
    reference: Floats | None
    returns: Floats | None
    old_values: Floats | None

    @property
    def total_weight(self) -> float:
        """Each answer counts 1 in the mean loss."""
        return float(self.n_answers)


def in_passes(
    answers: Sequence[Answer],
    n_most: int,
    weights: Sequence[Floats],
    advantages: Sequence[Floats],
    returns: Sequence[Floats] | None = None,
) -> list[Sampled]:
    """Answers in passes of up to n_most tokens. weights, advantages, returns: float64 [n_tokens] for each answer."""
    passes = []
    for group in order.packed([len(answer.ids) for answer in answers], n_most):
        some = [answers[n] for n in group]
        joined = Documents.joined([answer.document for answer in some])

        def gathered(parts: Sequence[Floats], group: list[int] = group) -> Floats:
            return np.concatenate([parts[n] for n in group])

        passes.append(
            Sampled(
                joined.ids, joined.lengths, joined.targets, joined.weights, len(some),
                gathered(weights), gathered(advantages), _of([answer.nll for answer in some], -1),
                _of([answer.reference for answer in some], -1),
                None if returns is None else gathered(returns), _of([answer.values for answer in some]),
            )
        )  # fmt: skip
    return passes


def _of(parts: Sequence[list[float] | None], sign: int = 1) -> Floats | None:
    known = [part for part in parts if part is not None]
    return sign * np.concatenate([np.array(part, np.float64) for part in known]) if known else None


class Kept:
    """The answers of the last rollouts of a run, by the step that they were sampled before.

    n_kept:  how many rollouts stay.
    """

    def __init__(self, folder: Path, n_kept: int) -> None:
        self._folder, self._n_kept = folder / FOLDER, n_kept

    def write(self, step: int, answers: Sequence[Answer]) -> None:
        """Raises FileProblem when they cannot be written."""
        write_sealed(self._path(step), {"step": step, "answers": [asdict(answer) for answer in answers]})
        steps = self._steps()
        # Later ones are of a run that was here before, or of steps that are done again.
        for other in [*(later for later in steps if later > step), *[s for s in steps if s <= step][: -self._n_kept]]:
            with suppress(OSError):  # it is in nobody's way
                self._path(other).unlink()

    def read(self, step: int) -> list[Answer]:
        """Raises FileProblem when they are not there as they were written: nobody can have them again."""
        found = read_sealed(self._path(step))
        if found is None or found.get("step") != step:
            state = "is damaged" if self._path(step).exists() else "is not there"
            raise FileProblem(
                f"{self._path(step)} {state}, and the run goes on in the middle of several updates from the answers in "
                f"it; put it back, or remove the checkpoints of steps after {step}, so that they are made again",
                parameter="resume",
            )
        return [Answer(**answer) for answer in found["answers"]]

    def _steps(self) -> list[int]:
        names = (_NAME.fullmatch(path.name) for path in self._folder.glob("step-*"))
        return sorted(int(name[1]) for name in names if name)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.json"
