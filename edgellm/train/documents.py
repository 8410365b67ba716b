"""Documents: token ids with what is to be learnt from them, as one pass of training reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOTHING = -1  # the target of a token after which nothing is learnt


@dataclass(frozen=True, eq=False)
class Documents:
    """Some documents, one behind the other: what one pass reads. Positions and attention start anew with each.

    ids:      int32 [n], their tokens.
    lengths:  int64 [n_documents], tokens of each, at least 1; their sum is n.
    targets:  int32 [n], the id that should come after each token, or NOTHING.
    weights:  float32 [n], how much each target counts, 0 where there is none.

    Raises ValueError for arrays that do not fit together.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, dtype in (("ids", np.int32), ("lengths", np.int64), ("targets", np.int32), ("weights", np.float32)):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype))
        n = len(self.ids)
        if not len(self.targets) == len(self.weights) == n == self.lengths.sum():
            raise ValueError("ids, targets, weights and lengths tell of different numbers of tokens")
        if (self.lengths < 1).any():
            raise ValueError("a document has no token")
        if (self.weights[self.targets == NOTHING] != 0).any():
            raise ValueError("a token without a target has a weight")

    @classmethod
    def of(cls, ids: Sequence[int], trained: Sequence[bool] | NDArray[np.bool_], weight: float = 1.0) -> Documents:
        """One document. trained: for each token whether it is to be learnt, given all before it; the first never is."""
        tokens = np.asarray(ids, np.int32)
        learnt = np.zeros(len(tokens), bool)
        learnt[:-1] = np.asarray(trained, bool)[1:]
        targets = np.where(learnt, np.roll(tokens, -1), NOTHING)
        return cls(tokens, np.array([len(tokens)]), targets, weight * learnt)  # type: ignore[arg-type]

    @classmethod
    def joined(cls, parts: Iterable[Documents]) -> Documents:
        """The documents of several, one behind the other."""
        found = list(parts)
        names = ("ids", "lengths", "targets", "weights")
        return cls(*(np.concatenate([getattr(part, name) for part in found] or [np.empty(0)]) for name in names))

    def apart(self) -> list[Documents]:
        """Each document by itself."""
        if self.n_documents == 1:
            return [self]
        ends = np.cumsum(self.lengths).tolist()
        found = []
        for start, end in zip([0, *ends], ends, strict=False):
            here = slice(start, end)
            found.append(Documents(self.ids[here], np.array([end - start]), self.targets[here], self.weights[here]))
        return found

    def __len__(self) -> int:
        """Tokens of all documents."""
        return len(self.ids)

    @property
    def n_documents(self) -> int:
        return len(self.lengths)

    @property
    def n_targets(self) -> int:
        """Tokens that are learnt."""
        return int(np.count_nonzero(self.targets != NOTHING))

    @property
    def total_weight(self) -> float:
        """The sum of all weights, in float64."""
        return float(self.weights.sum(dtype=np.float64))

    @property
    def starts(self) -> NDArray[np.int64]:
        """int64 [n_documents], the place of each document's first token."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def positions(self) -> NDArray[np.int32]:
        """int32 [n], the place of each token in its own document."""
        return (np.arange(len(self), dtype=np.int64) - np.repeat(self.starts, self.lengths)).astype(np.int32)
