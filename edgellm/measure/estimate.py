"""What a model will take and how fast it will be here, told before its weights are read.

The model's own programs are run for a moment, with every weight in one small piece of memory that is gone through again
and again: as large as no cache is, so that memory is as busy as with the real weights. So the kernels, the shapes, the
number of ops and the threads are those of the model, and nothing has to be assumed of them.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from edgellm.arch import architecture_of
from edgellm.engine.allocation import bytes_of_texts
from edgellm.engine.kv_cache import Sequence
from edgellm.engine.layout import Layout, tensors_to_tile
from edgellm.engine.opening import context_of, open_file
from edgellm.engine.runner import Runner
from edgellm.engine.scheduler import Scheduler
from edgellm.engine.states import NO_STATES
from edgellm.errors import FileProblem
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor
from edgellm.formats.tile_file import Place
from edgellm.graph import Graph, Tuning
from edgellm.graph.adapters import EMBEDDING, OUTPUT
from edgellm.graph.cache_memory import CacheLayer
from edgellm.kernels.records import KV_BLOCK
from edgellm.machine import beyond_caches, resident_memory
from edgellm.machine.others import OtherWork, is_too_busy
from edgellm.measure.bench import read, write
from edgellm.measure.reading import bytes_of_reading
from edgellm.params import RuntimeConfig
from edgellm.text import ChatTemplate, load_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RING_BYTES = 1 << 28  # far beyond most caches
_ALIGN = 64
_FILL = 0x3C  # as float16, float32 or bfloat16 a number near 1 or 0.01: nothing becomes so small that it is slow
_N_PROMPT, _SHORT_PROMPT = 512, 64  # tokens; a slow model is given few
_N_ANSWER, _LEAST_ANSWER = 32, 2
_SECONDS = 3.0  # for each of the two speeds, about
_REPETITIONS = 3


@dataclass(frozen=True)
class Estimate:
    """What to expect of a run.

    weight_bytes:  of the file, as they are in memory once a text was computed.
    other_bytes:   the program, the vocabulary, kernels, and the values of a batch.
    text_bytes:    what the tokenizer and embeddings take beside that, once 1, 2, 4, ... tokens of texts were read.
    token_bytes:   keys and values of a token in the cache. position_bytes: of a position, however many texts are there.
    layers:        of the cache, each with the number of blocks that it has at most; n_batch: tokens of one pass.
    state_bytes:   of each state of recurrent layers; a text has one and the next, and others every step_tokens tokens.
    n_prompt:      tokens that the speed of a prompt was measured with.
    busy_cores:    that other programs used meanwhile, so that the speeds are too low; None when it was calm enough.
    """

    model: str
    n_ctx: int
    n_threads: int
    isa: str
    weight_bytes: int
    other_bytes: int
    text_bytes: tuple[int, ...]
    token_bytes: int
    position_bytes: int
    state_bytes: int
    step_tokens: int
    n_prompt: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    layers: tuple[tuple[CacheLayer, int], ...]
    n_batch: int
    busy_cores: float | None = None

    def memory(self, n_tokens: int, n_texts: int = 1) -> int:
        """Bytes that a process takes at most with so many texts of n_tokens each at once."""
        states = n_texts * (2 + n_tokens // self.step_tokens) * self.state_bytes
        cached = bytes_of_texts(self.layers, n_texts, n_tokens, self.n_batch)
        doublings = (n_texts * n_tokens - 1).bit_length()
        read = self.text_bytes[min(doublings, len(self.text_bytes) - 1)] if n_tokens else 0
        other_bytes = self.other_bytes + n_tokens * self.position_bytes
        return self.weight_bytes + other_bytes + cached + states + read


def estimate(path: Path, runtime: RuntimeConfig, progress: Callable[[int, int, str], None] | None = None) -> Estimate:
    """Takes a few seconds, and as much memory as running the model, but for all weights beyond 256 MB or what
    the caches hold.

    progress(done, total, what) is called while kernels are compiled and before settings are measured, on a first start.
    Raises what loading the model would raise.
    """
    with open_file(path) as file:
        tensors = dict(file.tensors)
        try:
            ring = _Ring(tensors.values())
            file.tensors = MappingProxyType({name: ring.tensor(tensor) for name, tensor in tensors.items()})
            architecture = architecture_of(file.metadata)
            config = architecture.configure(file.metadata)
            n_ctx = context_of(runtime.n_ctx, config.n_ctx_train)
            tokenizer = load_tokenizer(file.metadata)
            template = ChatTemplate.from_metadata(file.metadata, tokenizer)
            tokenizer.encode("a", add_special=True, parse_special=True)
            runner = Runner(file, architecture, config, n_ctx, runtime, progress, lay_out=ring.lay_out)
        except FileProblem as problem:
            raise type(problem)(f"{path}: {problem}") from None
        try:
            scheduler = Scheduler(runner)
            sequence = runner.cache.sequence()
            others = OtherWork()
            n_prompt, prefill = _prefill(scheduler, sequence, runner)
            decode = _decode(scheduler, sequence, runner.n_vocab)
            busy_cores = others.cores()
            shape = runner.cache.states.shape if runner.cache.states is not None else NO_STATES
            touched = sequence.trail.n_held if sequence.trail is not None else 0
            sequence.release()
            layers = runner.cache.blocks_of_layers()
            cached = bytes_of_texts(layers, 1, max(n_prompt, _N_ANSWER), runner.n_batch)
            cached += max(2, touched) * shape.slot_bytes
            other_bytes = max(0, resident_memory() - ring.n_bytes - cached)
            position_bytes = runner.position_bytes
        finally:
            tiled = {tensor.name for tensor in runner.layout.tiles}
            runner.close()
            del template
        text_bytes = bytes_of_reading(tokenizer, _embeddings_alone(tensors, tiled))
    return Estimate(
        model=path.name,
        n_ctx=n_ctx,
        n_threads=runner.n_threads,
        isa=runner.isa.name,
        weight_bytes=_read_bytes(tensors),
        other_bytes=other_bytes,
        text_bytes=text_bytes,
        token_bytes=runner.cache.token_bytes,
        position_bytes=position_bytes,
        state_bytes=shape.slot_bytes,
        step_tokens=shape.step * KV_BLOCK,
        n_prompt=n_prompt,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        layers=tuple(layers),
        n_batch=runner.n_batch,
        busy_cores=busy_cores if is_too_busy(busy_cores, runner.n_threads) else None,
    )


class _Ring:
    """Memory for weights one after the other, and again from the start: as large as no cache is, or as all of them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        sizes = [_aligned(Place(one, 0).end if one.raw.ndim == 2 else one.n_bytes) for one in tensors]
        self.n_bytes = max(*sizes, min(sum(sizes), beyond_caches(_RING_BYTES)))
        mapping = mmap.mmap(-1, self.n_bytes)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            mapping.madvise(mmap.MADV_NOHUGEPAGE)  # a mapped file has small pages, which are slower to read
        self._memory = np.frombuffer(mapping, np.uint8)
        self._memory.fill(_FILL)
        self._at = 0

    def tensor(self, of: Tensor) -> Tensor:
        """One like another, in this memory."""
        return Tensor(of.name, of.shape, of.format, self._next(of.raw.shape))

    def lay_out(
        self,
        file: GGUFFile,
        graphs: Iterable[Graph],
        runtime: RuntimeConfig,
        tuning: Tuning,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Layout:
        """Weights as tiles where they will lie so, of which nothing is read or kept."""
        tiled = tensors_to_tile(graphs, runtime, tuning)
        if not tiled:
            return Layout()
        return Layout("memory", {tensor: self._next(Place(tensor, 0).shape) for tensor in tiled})

    def _next(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        n_bytes = prod(shape)
        if self._at + n_bytes > len(self._memory):
            self._at = 0
        found = self._memory[self._at : self._at + n_bytes].reshape(shape)
        self._at += _aligned(n_bytes)
        return found


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGN) * _ALIGN


def _read_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that are read: all, but for embeddings that serve for nothing else, of which a text has a few rows.

    Beside tiles, pages of the model's file are given back (`Layout.beside`).
    """
    return sum(tensor.n_bytes for name, tensor in tensors.items() if name != EMBEDDING or OUTPUT not in tensors)


def _embeddings_alone(tensors: Mapping[str, Tensor], tiled: Collection[str]) -> Tensor | None:
    """The embeddings, where nothing else reads them from the file."""
    embeddings = tensors.get(EMBEDDING)
    return embeddings if embeddings is not None and (EMBEDDING in tiled or OUTPUT in tensors) else None


def _prefill(scheduler: Scheduler, sequence: Sequence, runner: Runner) -> tuple[int, float]:
    """Tokens of a prompt, and tokens a second."""
    most = min(_N_PROMPT, runner.n_batch)
    n = min(_SHORT_PROMPT, most)
    seconds = _best(scheduler, sequence, read, n, runner.n_vocab, 2)
    if n < most and seconds * most / n < _SECONDS:
        n = most
        seconds = _best(scheduler, sequence, read, n, runner.n_vocab, _REPETITIONS)
    return n, n / seconds


def _decode(scheduler: Scheduler, sequence: Sequence, n_vocab: int) -> float:
    """Tokens a second."""
    one = _best(scheduler, sequence, write, _LEAST_ANSWER, n_vocab, 1) / _LEAST_ANSWER
    n = max(_LEAST_ANSWER, min(_N_ANSWER, int(_SECONDS / one / _REPETITIONS)))
    return n / _best(scheduler, sequence, write, n, n_vocab, _REPETITIONS)


def _best(
    scheduler: Scheduler, sequence: Sequence, work: Callable[..., float], n: int, n_vocab: int, repetitions: int
) -> float:
    """Seconds that n tokens take: the median of some repetitions after one that warms up."""
    ids = [(17 * i + 3) % n_vocab for i in range(n)]
    seconds = []
    for _ in range(repetitions + 1):
        seconds.append(work(scheduler, sequence, ids))
        sequence.trim(0)
    return median(seconds[1:])
