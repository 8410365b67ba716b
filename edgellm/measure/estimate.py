"""What a model will take and how fast it will be here, told before its weights are read.

The model's own programs are run for a moment, with every weight in one small piece of memory that is gone through again
and again: as large as no cache is, so that memory is as busy as with the real weights. So the kernels, the shapes, the
number of ops and the threads are those of the model, and nothing has to be assumed of them.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType

import numpy as np

from edgellm.arch import architecture_of
from edgellm.engine.kv_cache import CacheLayer, Sequence, blocks_for, bytes_of_texts
from edgellm.engine.opening import context_of, open_file
from edgellm.engine.runner import Runner
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import FileProblem
from edgellm.formats.tensor import Tensor
from edgellm.kernels.records import KV_BLOCK
from edgellm.machine import resident_memory
from edgellm.measure.bench import read, write
from edgellm.params import RuntimeConfig
from edgellm.text import ChatTemplate, load_tokenizer

_RING_BYTES = 1 << 28  # far beyond the caches
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
    token_bytes:   keys and values of a token in the cache.
    layers:        of the cache, which by their windows keep all or some of the tokens; n_batch: computed in one pass.
    n_prompt:      tokens that the speed of a prompt was measured with.
    """

    model: str
    n_ctx: int
    n_threads: int
    isa: str
    weight_bytes: int
    other_bytes: int
    token_bytes: int
    n_prompt: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    layers: tuple[CacheLayer, ...]
    n_batch: int

    def memory(self, n_tokens: int, n_texts: int = 1) -> int:
        """Bytes that a process takes at most with so many texts of n_tokens each at once."""
        cached = bytes_of_texts(self.layers, n_texts, n_tokens, self.n_batch)
        return self.weight_bytes + self.other_bytes + cached


def estimate(path: Path, runtime: RuntimeConfig, progress: Callable[[int, int, str], None] | None = None) -> Estimate:
    """Takes a few seconds, and as much memory as running the model, but for all weights beyond 256 MB.

    progress(done, total, kernel) is called while kernels are compiled, on a first start. Raises what loading the model
    would raise.
    """
    with open_file(path) as file:
        tensors = dict(file.tensors)
        try:
            ring, file.tensors = _in_a_ring(tensors)
            architecture = architecture_of(file.metadata)
            config = architecture.configure(file.metadata)
            n_ctx = context_of(runtime.n_ctx, config.n_ctx_train)
            tokenizer = load_tokenizer(file.metadata)
            template = ChatTemplate.from_metadata(file.metadata, tokenizer)
            tokenizer.encode("a", add_special=True, parse_special=True)
            runner = Runner(file, architecture, config, n_ctx, runtime, progress)
        except FileProblem as problem:
            raise type(problem)(f"{path}: {problem}") from None
        try:
            scheduler = Scheduler(runner)
            sequence = runner.cache.sequence()
            n_prompt, prefill = _prefill(scheduler, sequence, runner)
            decode = _decode(scheduler, sequence, runner.n_vocab)
            sequence.release()
            cached = KV_BLOCK * blocks_for(max(n_prompt, _N_ANSWER)) * runner.cache.token_bytes
            other_bytes = max(0, resident_memory() - len(ring) - cached)
        finally:
            runner.close()
            del template
    return Estimate(
        model=path.name,
        n_ctx=n_ctx,
        n_threads=runner.n_threads,
        isa=runner.isa.name,
        weight_bytes=_touched(tensors),
        other_bytes=other_bytes,
        token_bytes=runner.cache.token_bytes,
        n_prompt=n_prompt,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        layers=tuple(runner.cache.layers),
        n_batch=runner.n_batch,
    )


def _in_a_ring(tensors: Mapping[str, Tensor]) -> tuple[mmap.mmap, Mapping[str, Tensor]]:
    """Memory, and the same tensors as views of it, one after the other and again from the start."""
    total = sum(_aligned(tensor.n_bytes) for tensor in tensors.values())
    largest = max(_aligned(tensor.n_bytes) for tensor in tensors.values())
    ring = mmap.mmap(-1, max(largest, min(total, _RING_BYTES)))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        ring.madvise(mmap.MADV_NOHUGEPAGE)  # a mapped file has small pages, which are slower to read
    memory = np.frombuffer(ring, np.uint8)
    memory.fill(_FILL)
    placed, at = {}, 0
    for name, tensor in tensors.items():
        if at + tensor.n_bytes > len(memory):
            at = 0
        raw = memory[at : at + tensor.n_bytes].reshape(tensor.raw.shape)
        placed[name] = Tensor(name, tensor.shape, tensor.format, raw)
        at += _aligned(tensor.n_bytes)
    return ring, MappingProxyType(placed)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGN) * _ALIGN


def _touched(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that are read: all, but for embeddings that serve for nothing else, of which a text has a few rows."""
    unread = "token_embd.weight" if "output.weight" in tensors else None
    return sum(tensor.n_bytes for name, tensor in tensors.items() if name != unread)


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
