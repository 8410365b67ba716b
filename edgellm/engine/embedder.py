"""Runs models that make vectors, or scores, of texts: many whole texts in a pass, without a cache.

Texts are sorted by length and put into passes of up to n_batch tokens; a longer one has a pass of its own. What a text
gives does not depend on what else is in its pass, to the bit.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from edgellm.arch import Architecture, ModelConfig
from edgellm.engine.damage import no_numbers
from edgellm.engine.pooling import pool
from edgellm.engine.runner import Runner, target_for
from edgellm.errors import UsageError
from edgellm.formats.gguf import GGUFFile
from edgellm.graph import Batch, Program, Team, lower
from edgellm.graph.program import RowMemory
from edgellm.graph.team import KERNELS
from edgellm.kernels.isa import choose
from edgellm.kernels.store import KernelStore
from edgellm.params import RuntimeConfig

HEAD_ROWS = 16  # pooled texts that go through a head together

Alone = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Text:
    """A text as tokens, and the part of a pair that each belongs to, 0 or 1; of a single text, none says so."""

    token_ids: Sequence[int]
    segments: Sequence[int] = ()


class Embedder:
    """A model's programs for whole texts.

    width:    of a vector; of a model with a classifier, how many scores a text has.
    n_vocab:  tokens that have an embedding.
    """

    def __init__(
        self,
        file: GGUFFile,
        architecture: Architecture,
        config: ModelConfig,
        runtime: RuntimeConfig,
        progress: Callable[[int, int, str], None] | None = None,
        beside: Runner | None = None,
        alone: Alone | None = None,
    ) -> None:
        """beside: a runner of the same model, whose threads serve. alone: gives them to one thread at a time."""
        self._file = file
        self.graphs = architecture.record_vectors(config, file.tensors)
        self.width = self.graphs.logits.width
        self.n_vocab = file.tensors["token_embd.weight"].shape[0]
        self.n_batch = runtime.n_batch
        self._alone = alone or _lock()
        if beside is None:
            self._store = KernelStore(choose())
            self.target = target_for(self.graphs, self._store, runtime, progress)
        else:
            self._store, self.target = beside.store, beside.target
        self.n_threads = self.target.tuning.n_threads
        body, head = lower(self.graphs.body, self.target, longest=1), lower(self.graphs.head, self.target)
        self._store.load([*body.kernels, *head.kernels, *KERNELS], progress)
        if beside is None:
            self._team = Team(self._store, self.n_threads, max(len(body.ops), len(head.ops), 1))
            self._end = weakref.finalize(self, Team.close, self._team)
        else:
            self._team = beside.team
        self._body: Program | None = None
        self._pooled = RowMemory(self.graphs.hidden.width, HEAD_ROWS)
        self._head_batch = Batch(HEAD_ROWS, head)
        self._head = (
            Program(head, self._store, self._head_batch, self._team,
                    inputs={self.graphs.hidden_input: self._pooled.address})
            if self.graphs.head.nodes else None
        )  # fmt: skip

    def states(self, texts: Sequence[Text]) -> Iterator[tuple[int, np.ndarray]]:
        """For each text, its place among them and its hidden states: float32 [n_tokens, width], a view until the next.

        Shorter ones come first.
        """
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].token_ids))
        at = 0
        while at < len(order):
            end, n_tokens = at, 0
            while end < len(order) and (end == at or n_tokens + len(texts[order[end]].token_ids) <= self.n_batch):
                n_tokens += len(texts[order[end]].token_ids)
                end += 1
            some = order[at:end]
            with self._alone():
                rows = self._run([texts[i] for i in some], n_tokens)
                first = 0
                for i in some:
                    last = first + len(texts[i].token_ids)
                    yield i, rows[first:last]
                    first = last
            at = end

    def rows(self, texts: Sequence[Text], pooling: str) -> np.ndarray:
        """A vector, or scores, of each text: float32 [n_texts, width]."""
        pooled = np.empty((len(texts), self.graphs.hidden.width), np.float32)
        for i, states in self.states(texts):
            pooled[i] = pool(states, pooling)
        found = self._through_head(pooled) if self.graphs.head.nodes else pooled
        if not np.isfinite(found).all():
            self._check_open()
            raise no_numbers(self._file, self.target.kv_type)
        return found

    def close(self) -> None:
        """End the threads that are its own, when the pass that is on has ended."""
        if "_end" in self.__dict__:
            with self._alone():
                self._end()
        for name in ("_team", "_store", "_body", "_head", "_file"):
            self.__dict__.pop(name, None)

    def _check_open(self) -> None:
        if "_store" not in self.__dict__:
            raise UsageError("the model is closed")

    def _run(self, texts: Sequence[Text], n_tokens: int) -> np.ndarray:
        self._check_open()
        program = self._program(n_tokens)
        segments = [text.segments or (0,) * len(text.token_ids) for text in texts]
        program.run(program.batch.fill_texts([text.token_ids for text in texts], segments))
        return program.view(self.graphs.hidden, n_tokens)

    def _program(self, n_tokens: int) -> Program:
        """The body for so many tokens. One for longer texts than any before takes the place of the last."""
        if self._body is None or self._body.batch.capacity < n_tokens:
            capacity = self.n_batch
            while capacity < n_tokens:
                capacity *= 2
            if self._body is not None:
                self._team.forget([self._body])
            lowered = lower(self.graphs.body, self.target, longest=capacity)
            self._body = Program(lowered, self._store, Batch(capacity, lowered), self._team)
        return self._body

    def _through_head(self, pooled: np.ndarray) -> np.ndarray:
        found = np.empty((len(pooled), self.width), np.float32)
        for first in range(0, len(pooled), HEAD_ROWS):
            some = pooled[first : first + HEAD_ROWS]
            with self._alone():
                self._check_open()
                assert self._head is not None
                self._pooled.fill(some)
                self._head.run(self._head_batch.select(range(len(some))))
                found[first : first + len(some)] = self._head.view(self.graphs.logits, len(some))
        return found


def _lock() -> Alone:
    """One thread at a time."""
    lock = threading.RLock()
    return lambda: lock
