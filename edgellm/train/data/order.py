"""In which order examples are learnt: told by seed and epoch alone, so that any step can be gone on with.

No state is kept and none is saved: batch k of an epoch is the same whenever it is asked for, on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgellm import checks
from edgellm.errors import UsageError
from edgellm.train.documents import Documents

T = TypeVar("T")
SPLIT = 0x5EED  # tells the draw of the split from those of epochs


@lru_cache(maxsize=4)  # the steps of an epoch ask for the same one
def shuffled(n: int, *seed: int) -> NDArray[np.int64]:
    """int64 [n], a permutation that the numbers alone decide.

    Of the bits of PCG64 (O'Neill, 2014), which NumPy promises to keep the same, unlike its own shuffling.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n)
    order = np.argsort(np.asarray(bits, np.uint64), kind="stable")
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class Batches:
    """The batches of all epochs: each example once in an epoch, in another order in each.

    n_examples:  of the training part.
    size:        examples of a batch (of one step of the optimizer); the last of an epoch may have fewer.
    """

    n_examples: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        checks.whole_number("n_examples", self.n_examples, 1)
        checks.whole_number("size", self.size, 1)
        checks.whole_number("seed", self.seed, 0)

    @property
    def n_per_epoch(self) -> int:
        """Steps of an epoch."""
        return -(-self.n_examples // self.size)

    def at(self, step: int) -> NDArray[np.int64]:
        """int64 [size], the numbers of the examples of a step; steps count from 0 and go on through the epochs."""
        epoch, batch = divmod(checks.whole_number("step", step, 0), self.n_per_epoch)
        return shuffled(self.n_examples, self.seed, epoch)[batch * self.size : (batch + 1) * self.size]


def passes(documents: Iterable[Documents], n_most: int) -> list[Documents]:
    """Documents in as few passes as first-fit by length finds, none of more than n_most tokens.

    They stay apart in a pass, so nothing that is learnt depends on which share one. The same documents make the same
    passes. Raises UsageError for a document that is longer than a pass.
    """
    parts = [part for joined in documents for part in joined.apart()]
    order = sorted(range(len(parts)), key=lambda n: -len(parts[n]))
    rooms: list[int] = []
    filled: list[list[int]] = []
    for n in order:
        length = len(parts[n])
        if length > n_most:
            raise UsageError(f"a document has {length} tokens, and a pass holds {n_most}")
        at = next((place for place, room in enumerate(rooms) if room >= length), len(rooms))
        if at == len(rooms):
            rooms.append(n_most)
            filled.append([])
        rooms[at] -= length
        filled[at].append(n)
    return [Documents.joined(parts[n] for n in sorted(numbers)) for numbers in filled]


def split(examples: Sequence[T], share: float | int, seed: int) -> tuple[list[T], list[T]]:
    """Examples to learn from and others to validate with, both in their order.

    share:  for validation: a fraction below 1, or a number of examples.
    Raises UsageError when one of the two would be empty.
    """
    n = len(examples)
    amount = checks.positive_number("validation", share)
    if amount > 1 and not amount.is_integer():
        raise checks.wrong("validation", share, "a fraction below 1, or a number of examples")
    n_held = int(amount) if amount >= 1 else max(1, round(n * amount))
    if n_held >= n:
        raise UsageError(
            f"validation takes {n_held} of {n} examples, which leaves none to learn from; give more data or hold "
            "fewer back",
            parameter="validation",
        )
    held = set(shuffled(n, seed, SPLIT)[:n_held].tolist())
    return [x for i, x in enumerate(examples) if i not in held], [x for i, x in enumerate(examples) if i in held]
