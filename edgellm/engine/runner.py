"""Runs a model's programs: batches of tokens in, logits out, and the cache grows by those tokens."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edgellm.arch import Architecture, ModelConfig
from edgellm.arch.weights import Weights
from edgellm.engine.kv_cache import CacheLayer, KVCache, Sequence, blocks_for
from edgellm.engine.tuner import measure_and_remember, remembered
from edgellm.errors import MemoryLimitError, UsageError
from edgellm.formats.gguf import GGUFFile
from edgellm.graph import Batch, Graph, Program, Team, Tuning
from edgellm.graph.builder import ATTENTION_ROWS, MAX_SPLITS
from edgellm.graph.forks import at_fork
from edgellm.graph.program import kernels_of
from edgellm.graph.team import KERNELS
from edgellm.kernels.isa import Isa, choose
from edgellm.kernels.kv_types import F16, KVType
from edgellm.kernels.records import SPAN_TOKENS
from edgellm.kernels.store import KernelStore
from edgellm.machine import default_threads, total_memory
from edgellm.quants import BlockFormat

Chooser = Callable[[np.ndarray, np.ndarray], int]

HEAD_TOKENS = 16  # logits are made for so many tokens at a time: with a large vocabulary each is a megabyte
MAX_SEQUENCES = 4  # full contexts that the cache has room for, where memory allows


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence in a batch. n_logits: for how many of the last of them logits are wanted."""

    sequence: Sequence
    token_ids: SequenceOf[int]
    n_logits: int = 1


class Runner:
    """A model in memory. Its methods may be called from any thread; batches run one after the other.

    body, head:  the programs, from token ids to hidden states and from those to logits; `team` runs them.
    """

    def __init__(
        self,
        file: GGUFFile,
        architecture: Architecture,
        config: ModelConfig,
        n_ctx: int,
        n_batch: int,
        n_threads: int | None,
        kv_type: KVType = F16,
        progress: Callable[[int, int, str], None] | None = None,
        observe: bool = False,
    ) -> None:
        self.config = config
        self.isa = choose()
        self.n_batch = n_batch
        self._file = file  # programs hold addresses in its mapping
        self.store = store = KernelStore(self.isa)  # the machine code lives as long as this

        def record(tuning: Tuning) -> _Recorded:
            recorded = _Recorded(architecture, config, Weights(file.tensors), self.isa, tuning, kv_type, observe)
            store.load([*kernels_of(recorded.body), *kernels_of(recorded.head), *KERNELS], progress)
            return recorded

        weights = _most_common_format(file)
        tuning = remembered(store, weights, n_threads)
        if tuning is None:  # the first start on this machine
            record(Tuning(default_threads()))  # a file that cannot be run says so before anything is measured
            tuning = measure_and_remember(store, weights, n_threads)
        recorded = record(tuning)
        body, head, hidden, hidden_input = recorded.body, recorded.head, recorded.hidden, recorded.hidden_input
        self.tuning, self.n_threads = tuning, tuning.n_threads
        self.n_vocab = recorded.logits.width
        self._logits, self._maxima = recorded.logits, recorded.maxima

        layers = [CacheLayer(n_kv_heads, head_dim, kv_type) for n_kv_heads, head_dim in body.cache_layers]
        self.cache = _allocate_cache(layers, n_ctx)
        self.team = Team(store, tuning.n_threads, max_ops=len(body.ops))
        self._end = weakref.finalize(self, self.team.close)  # its threads must not outlive what they work on
        self._batch = Batch(n_batch, body.ropes, body.windows)
        tables = {f"cache {i}": self.cache.address(i) for i in range(len(layers))}
        self.body = Program(body, store, self._batch, self.team, tables)
        self._head_batch = Batch(HEAD_TOKENS, [], [])
        self.head = Program(head, store, self._head_batch, self.team, inputs={hidden_input: self.body.address(hidden)})
        self._unlock()
        at_fork(self, in_child=Runner._unlock)  # a batch of another thread has no end there

    def forward(self, spans: SequenceOf[Span]) -> np.ndarray:
        """Compute all spans in one batch of at most n_batch tokens, and append them to their sequences.

        Returns float32 [sum of n_logits, n_vocab], in the order of the spans. Raises ContextOverflowError when
        the cache is full, UsageError after `close`.
        """
        with self._computed(spans) as wanted:
            result = np.empty((len(wanted), self.n_vocab), np.float32)
            for start in range(0, len(wanted), HEAD_TOKENS):
                n = self._run_head(wanted[start : start + HEAD_TOKENS])
                result[start : start + n] = self.head.view(self._logits, n)
            return result

    def choose(self, sequence: Sequence, token_ids: SequenceOf[int], chooser: Chooser) -> int:
        """Compute one span like `forward`, and let `chooser(logits, maxima)` say what comes next.

        It gets views of the logits and of the largest of every MAXIMA_GROUP of them, where they were made and only for
        as long as it runs; until it returns, nobody else can run the model.
        """
        with self._computed([Span(sequence, token_ids)]) as wanted:
            self._run_head(wanted)
            return chooser(self.head.view(self._logits, 1)[0], self.head.view(self._maxima, 1)[0])

    @contextmanager
    def other_weights(self, name: str, raw: np.ndarray) -> Iterator[None]:
        """Meanwhile, the matrix `name` has other bytes of its own format and size. Nobody else may run the model."""
        tensor = self._file.tensors[name]
        raw = np.ascontiguousarray(raw)
        if raw.nbytes != tensor.n_bytes:
            raise UsageError(f"{raw.nbytes} bytes for tensor {name!r}, which has {tensor.n_bytes}")
        places = tensor.address, raw.ctypes.data
        for program in (self.body, self.head):
            program.replace_weights(*places)
        try:
            yield
        finally:
            for program in (self.body, self.head):
                program.replace_weights(*reversed(places))

    def close(self) -> None:
        """End the threads, when the batch that is running is done."""
        with self._lock:
            self._end()

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def _computed(self, spans: SequenceOf[Span]) -> Iterator[list[int]]:
        """Run the body for some spans; gives the rows of which logits are wanted, then counts the tokens as cached."""
        with self._lock:
            if not self._end.alive:
                raise UsageError("the model is closed")
            self.body.run(self._fill(spans))
            wanted: list[int] = []
            end = 0
            for span in spans:
                end += len(span.token_ids)
                wanted.extend(range(end - span.n_logits, end))
            yield wanted
            for span in spans:
                span.sequence.append(span.token_ids)

    def _run_head(self, rows: list[int]) -> int:
        """Logits for some rows of the body's; returns how many these are."""
        self._head_batch.rows[: len(rows)] = rows
        self.head.run({"tokens": len(rows)})
        return len(rows)

    def _fill(self, spans: SequenceOf[Span]) -> dict[str, int]:
        """Write the batch's tables for the spans; returns the counts of the run."""
        batch, n_tokens = self._batch, 0
        slices: list[tuple[int, int, int, int]] = []
        positions: list[int] = []
        at_once = max(1, ATTENTION_ROWS * self.config.n_kv_heads // self.config.n_heads)
        for span in spans:
            n, start = len(span.token_ids), len(span.sequence)
            span.sequence.reserve(n)
            batch.token_ids[n_tokens : n_tokens + n] = span.token_ids
            batch.kv_slots[n_tokens : n_tokens + n] = span.sequence.slots(n)
            positions += range(start, start + n)
            table = span.sequence.block_table.ctypes.data
            slices += [(n_tokens + i, min(at_once, n - i), start + i, table) for i in range(0, n, at_once)]
            n_tokens += n
        batch.turn(np.array(positions))
        counts = {"tokens": n_tokens}
        for kind, window in enumerate(batch.windows):
            counts[f"tasks {kind}"], counts[f"merges {kind}"] = self._divide(kind, window, slices)
        return counts

    def _divide(self, kind: int, window: int | None, slices: list[tuple[int, int, int, int]]) -> tuple[int, int]:
        """Attention tasks for slices (token, n_tokens, position, block table); a lone token with a long past is split.

        The splits are the same whatever the number of threads, and so are the results.
        """
        tasks, merges = self._batch.tasks[kind], self._batch.merges[kind]
        n_tasks = n_merges = n_slots = 0
        for token, n, position, table in slices:
            first = 0 if window is None else max(0, position - window + 1)
            first_split, last_split = first // SPAN_TOKENS, position // SPAN_TOKENS
            n_splits = last_split - first_split + 1
            if n > 1 or n_splits == 1 or n_slots + n_splits > MAX_SPLITS:
                tasks[n_tasks] = (token, n, position, 0, position + n, table, -1)
                n_tasks += 1
                continue
            merges[n_merges] = (token, n_slots, n_splits)
            n_merges += 1
            for split in range(first_split, last_split + 1):
                begin = split * SPAN_TOKENS
                tasks[n_tasks] = (token, 1, position, begin, min(begin + SPAN_TOKENS, position + 1), table, n_slots)
                n_tasks += 1
                n_slots += 1
        return n_tasks, n_merges


class _Recorded:
    """The two graphs of a model, and the values that connect them with each other and with the world."""

    def __init__(
        self,
        architecture: Architecture,
        config: ModelConfig,
        weights: Weights,
        isa: Isa,
        tuning: Tuning,
        kv_type: KVType,
        observe: bool,
    ) -> None:
        self.body, self.head = Graph(isa, tuning, kv_type, observe), Graph(isa, tuning, observe=observe)
        self.hidden = architecture.body(self.body, weights, config)
        self.hidden_input = self.head.input(self.hidden.width)
        self.logits = architecture.head(self.head, weights, config, self.hidden_input)
        self.maxima = self.head.output(self.head.maxima(self.logits))
        weights.refuse_the_rest(config.architecture)


def _most_common_format(file: GGUFFile) -> BlockFormat:
    """The format that most bytes are in; the speed of decode is mostly that of its kernel."""
    n_bytes: Counter[BlockFormat] = Counter()
    for tensor in file.tensors.values():
        n_bytes[tensor.format] += tensor.n_bytes
    return max(n_bytes, key=lambda found: n_bytes[found])


def _allocate_cache(layers: list[CacheLayer], n_ctx: int) -> KVCache:
    """A cache for several full contexts, or for fewer where that would take more than half of the memory."""
    one = blocks_for(n_ctx) + 1
    one_bytes = one * sum(layer.block_bytes for layer in layers)
    memory = total_memory()
    if one_bytes > 0.9 * memory:
        raise MemoryLimitError(
            f"a context of {n_ctx} tokens needs a KV cache of {one_bytes / 1e9:.1f} GB, and this "
            f"process may have {memory / 1e9:.1f} GB; choose a shorter one (-c, n_ctx)"
        )
    n_sequences = min(MAX_SEQUENCES, max(1, int(memory / 2 // one_bytes)))
    return KVCache(layers, one * n_sequences)
