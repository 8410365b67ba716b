"""A text as token ids, in the fewest bytes, and the windows of it that a model reads in training.

Documents stand one behind the other, each with the token that ends a text, and windows are cut from that row: n_ctx
tokens, each with the one behind it as what should come next. A window may hold the end of one document and the
beginning of another, as in GPT-2's training.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import UsageError
from edgellm.text import Tokenizer
from edgellm.train.data.order import SPLIT, shuffled
from edgellm.train.documents import Documents

MANY_DOCUMENTS = 20  # from which some of them, whole, are the part for validation


@dataclass(frozen=True, eq=False)
class Windows:
    """A row of tokens as windows.

    ids:    uint16 or uint32 [n], at least 2.
    n_ctx:  tokens of a window; the last one can be shorter.
    """

    ids: NDArray[np.unsignedinteger]
    n_ctx: int

    def __len__(self) -> int:
        """Windows in all. The row's first token is no target, so its last is none to read."""
        return -(-self.n_targets // self.n_ctx)

    @property
    def n_targets(self) -> int:
        """Tokens to foresee."""
        return max(0, len(self.ids) - 1)

    def documents(self, numbers: Sequence[int] | NDArray[np.integer]) -> Documents:
        """The windows of these numbers, each a document of which every token counts."""
        starts = np.asarray(numbers, np.int64) * self.n_ctx
        ends = np.minimum(starts + self.n_ctx, self.n_targets)
        places = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        targets = self.ids[places + 1].astype(np.int32)
        return Documents(self.ids[places].astype(np.int32), ends - starts, targets, np.ones(len(places), np.float32))

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """int64 [len(self)], the windows' numbers as an epoch goes through them: shuffled, and otherwise in each."""
        return shuffled(len(self), seed, epoch)


@dataclass(frozen=True, eq=False)
class Corpus:
    """What is trained on, and what is only foreseen, to see how good the model is on text that it does not know.

    n_bytes:      of the text, as the files have it.
    n_documents:  of the text.
    """

    training: Windows
    validation: Windows
    n_bytes: int
    n_documents: int

    @property
    def n_tokens(self) -> int:
        return len(self.training.ids) + len(self.validation.ids)


def encode_corpus(
    tokenizer: Tokenizer,
    pieces: Iterable[tuple[str, bool]],
    *,
    n_ctx: int,
    validation: float,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Corpus:
    """The documents of a text as ids.

    pieces:      of text, and of each whether a document ends with it (`TextFiles.pieces`).
    validation:  what is not trained on: the share of the tokens, or from 1 on a number of windows. Of many documents
                 it is some of them, chosen by the seed; of fewer it is the end of the text.
    progress:    (bytes of text done).

    Raises UsageError for a text that is too short.
    """
    ids = array("H" if tokenizer.n_vocab <= 1 << 16 else "I")
    dtype = np.dtype(ids.typecode)
    begin = tokenizer.encode("", add_special=True)
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    starts, n_bytes, is_begun = array("Q"), 0, False
    for piece, ends in pieces:
        if not is_begun:
            starts.append(len(ids))
        found = ([] if is_begun else begin) + tokenizer.encode(piece) + (end if ends else [])
        ids.frombytes(np.array(found, dtype).tobytes())
        is_begun = not ends
        n_bytes += len(piece.encode())
        if progress:
            progress(n_bytes)
    all_ids: NDArray[np.unsignedinteger] = np.frombuffer(ids, dtype)
    wanted = round(validation * len(all_ids)) if validation < 1 else int(validation) * n_ctx + 1
    n_held = min(wanted, len(all_ids))
    if n_held:
        n_held = _put_validation_last(all_ids, np.array([*starts, len(ids)], np.int64), n_held, seed)
    split = len(all_ids) - n_held
    if split < 2 or (validation and n_held < 2):
        what = "training" if split < 2 else "validation"
        raise UsageError(
            f"the text has {len(all_ids)} tokens, which leaves too few for {what} (validation is {validation:g}); "
            "give a longer text, or another share"
        )
    return Corpus(Windows(all_ids[:split], n_ctx), Windows(all_ids[split:], n_ctx), n_bytes, len(starts))


def _put_validation_last(ids: NDArray[np.unsignedinteger], edges: NDArray[np.int64], wanted: int, seed: int) -> int:
    """Move the documents for validation behind the others, in place; returns the number of their tokens.

    edges:   int64 [n_documents + 1], where documents begin, and the end.
    wanted:  tokens, at least; whole documents have a few more.
    """
    n_documents = len(edges) - 1
    if n_documents < MANY_DOCUMENTS:
        return wanted
    chosen: list[int] = []
    n_held = 0
    for document in shuffled(n_documents, seed, SPLIT).tolist():
        if n_held >= wanted or len(chosen) == n_documents - 1:
            break
        chosen.append(document)
        n_held += int(edges[document + 1] - edges[document])
    chosen.sort()
    held = np.concatenate([ids[edges[document] : edges[document + 1]] for document in chosen])
    to = int(edges[chosen[0]])
    for document, following in zip(chosen, [*chosen[1:], n_documents], strict=True):
        kept = ids[edges[document + 1] : edges[following]]
        ids[to : to + len(kept)] = kept  # to the left, within the same array: NumPy heeds the overlap
        to += len(kept)
    ids[to:] = held
    return n_held


class WindowBatches:
    """The windows of a corpus as the training loop takes them (`loop.Batches`).

    batch_size:  windows of an update, all together; the last of an epoch can have fewer.
    at_once:     windows that go through the model together, at most.
    """

    def __init__(self, corpus: Corpus, batch_size: int, at_once: int, seed: int) -> None:
        self._windows = corpus.training
        self._batch_size = batch_size
        self._at_once = at_once
        self._seed = seed
        self.n_batches = -(-len(self._windows) // batch_size)
        self.validation: Sequence[Documents] = _Passes(corpus.validation, self._at_once)

    def epoch(self, number: int) -> Iterator[list[Documents]]:
        """The batches of an epoch, each as passes: the same in the same order whenever it is asked."""
        order = self._windows.order(self._seed, number)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            pieces = (batch[at : at + self._at_once] for at in range(0, len(batch), self._at_once))
            yield [self._windows.documents(piece) for piece in pieces]


class _Passes(Sequence[Documents]):
    """All windows in their order, some at once, made when they are asked for."""

    def __init__(self, windows: Windows, at_once: int) -> None:
        self._windows = windows
        self._at_once = at_once

    def __len__(self) -> int:
        return -(-len(self._windows) // self._at_once)

    @overload
    def __getitem__(self, number: int) -> Documents: ...
    @overload
    def __getitem__(self, number: slice) -> list[Documents]: ...
    def __getitem__(self, number: int | slice) -> Documents | list[Documents]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        start = range(len(self))[number] * self._at_once
        return self._windows.documents(range(start, min(start + self._at_once, len(self._windows))))
