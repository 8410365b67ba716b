"""Pairs of answers and judged answers as passes: documents that know which answer each of their tokens belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.train.config import TrainConfig
from edgellm.train.data import order
from edgellm.train.data.encoder import Judged, Pair
from edgellm.train.documents import NOTHING, Documents
from edgellm.train.preference.numbers import Floats


@dataclass(frozen=True, eq=False)
class Answers(Documents):
    """The documents of some answers, one behind the other.

    owners:    int64 [n_targets], which answer each target is a part of; answers count from 0.
    ends:      int64 [n_answers], the place of each one's last token.
    examples:  int64 [n_examples], which examples of the data they are; of pairs, the chosen answer stands first.
    before:    answers whose likelihoods belong to the whole batch; in the first of its passes alone.
    """

    owners: NDArray[np.int64]
    ends: NDArray[np.int64]
    examples: NDArray[np.int64]
    before: tuple[Answers, ...] = ()

    @classmethod
    def gathered(cls, answers: Sequence[Documents], examples: Sequence[int], before: Sequence[Answers] = ()) -> Answers:
        parts = Documents.joined(answers)
        owners = np.repeat(np.arange(len(answers)), [answer.n_targets for answer in answers])
        ends = np.cumsum([len(answer) for answer in answers]) - 1
        numbers = np.asarray(examples, np.int64)
        return cls(parts.ids, parts.lengths, parts.targets, parts.weights, owners, ends, numbers, tuple(before))

    @property
    def total_weight(self) -> float:
        """Each example counts 1 in the mean loss."""
        return float(len(self.examples))

    @property
    def n_tokens(self) -> Floats:
        """float64 [n_answers], tokens of each that are learnt."""
        return np.bincount(self.owners).astype(np.float64)

    def log_likelihoods(self, nlls: NDArray[np.float32]) -> Floats:
        """float64 [n_answers], from the negative log-likelihoods of all targets."""
        return np.asarray(-np.bincount(self.owners, weights=nlls.astype(np.float64)))


def documents_of_answers(example: Pair | Judged) -> list[Documents]:
    """Those of an example's answers, in their order."""
    return [example.chosen, example.rejected] if isinstance(example, Pair) else [example.documents]


def longest_example(examples: Sequence[Pair | Judged]) -> int:
    """Tokens of the longest, all answers together: a pass must hold them."""
    return max(sum(map(len, documents_of_answers(example))) for example in examples)


def in_passes(
    examples: Sequence[Pair | Judged], numbers: Sequence[int], n_most: int, before: Sequence[Answers] = ()
) -> list[Answers]:
    """Some examples in passes of up to n_most tokens, an example's answers always in one."""
    answers = [documents_of_answers(examples[n]) for n in numbers]
    passes: list[Answers] = []
    for group in order.packed([sum(map(len, parts)) for parts in answers], n_most):
        parts = [part for n in group for part in answers[n]]
        passes.append(Answers.gathered(parts, [numbers[n] for n in group], () if passes else before))
    return passes


class AnswerBatches:
    """The batches of a run; see `loop.Batches`. They depend on seed, epoch and place alone.

    examples:    all of them, those that are learnt first; reference likelihoods are counted so too.
    mismatched:  for each example an answer to another prompt, whose likelihoods a batch needs beside; or empty.
    """

    def __init__(
        self,
        examples: Sequence[Pair | Judged],
        n_learnt: int,
        config: TrainConfig,
        n_batch: int,
        mismatched: Sequence[Documents] = (),
    ) -> None:
        self._examples, self._n_batch, self._mismatched = examples, n_batch, mismatched
        self._order = order.Batches(n_learnt, config.batch_size * config.accumulate, config.seed)
        self.n_batches = self._order.n_per_epoch
        self.validation = self._passes(range(n_learnt, len(examples)))

    def epoch(self, number: int) -> Iterator[list[Answers]]:
        for step in range(number * self.n_batches, (number + 1) * self.n_batches):
            yield self._passes(self._order.at(step).tolist())

    def _passes(self, numbers: Sequence[int]) -> list[Answers]:
        before = mismatched_in_passes(self._mismatched, numbers, self._n_batch) if self._mismatched else []
        return in_passes(self._examples, numbers, self._n_batch, before)


def mismatched_in_passes(mismatched: Sequence[Documents], numbers: Sequence[int], n_most: int) -> list[Answers]:
    """The mismatched answers of some examples, as passes."""
    groups = order.packed([len(mismatched[n]) for n in numbers], n_most)
    return [Answers.gathered([mismatched[numbers[n]] for n in group], [numbers[n] for n in group]) for group in groups]


def mismatched_answers(examples: Sequence[Judged], longest: int) -> list[Documents]:
    """For each example its prompt with the answer of the one before it; the first has that of the last.

    As in TRL, they are the same in every epoch. Of several documents the last counts, and no more than `longest` tokens
    of the answer are kept than fit.
    """
    last = [example.documents.apart()[-1] for example in examples]
    return [_answered(one, other, longest) for one, other in zip(last, [last[-1], *last[:-1]], strict=True)]


def _answered(asked: Documents, other: Documents, longest: int) -> Documents:
    """The prompt of one document with the answer of another."""
    prompt, answer = asked.ids[: _begin(asked)], other.ids[_begin(other) :]
    ids = np.concatenate([prompt, answer[: max(1, longest - len(prompt))]])
    return Documents.of(ids, np.arange(len(ids)) >= len(prompt))  # type: ignore[arg-type]


def _begin(document: Documents) -> int:
    """The place of the first token that is learnt."""
    return int(np.flatnonzero(document.targets != NOTHING)[0]) + 1
