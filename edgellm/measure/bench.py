"""How fast a model runs, prompt and generation apart, and how near that is to what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from edgellm.engine.kv_cache import Sequence
from edgellm.engine.model import Model
from edgellm.engine.request import Request
from edgellm.engine.runner import Programs
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import UsageError
from edgellm.graph.cost import cache_bytes, weight_bytes, weight_macs
from edgellm.measure.limits import Limits, ReadStream, measure_limits


def measure(model: Model, n_prompt: int, n_generate: int, n_repetitions: int = 5, depth: int = 0) -> dict[str, Any]:
    """Medians over repetitions of reading n_prompt tokens at once and of n_generate single tokens.

    With the adapters that `Model.set_adapters` named.

    depth:  tokens that are in the context before either starts.

    Shares of the machine's limits (see `measure_limits`) count what a perfect program could not do without:
    in decode the bytes of all weights, once for each token, and of the keys and values that attention looks at;
    in prefill the products with weights, but not attention's own, which are of float32. A model that fits into
    the caches can read them faster than memory, and so have a share above 1.

    What memory gives is measured before and after every repetition, and decode's share is the median of its shares of
    the mean of both: where others use the same memory, it changes by the minute, and a best of many looks beside a
    median would make a share of chance.
    """
    check_room(model, depth + max(n_prompt, n_generate))
    runner, scheduler = model._runner, model._scheduler
    runner.wait_for_tiles()
    limits, stream = measure_limits(runner.store, runner.team), ReadStream(runner.store, runner.team)
    ids = some_tokens(model, max(depth, n_prompt, n_generate, 1))
    adapters = model._adapters.usual
    sequence = runner.cache.sequence(adapters)
    try:
        read(scheduler, sequence, ids[:depth])
        prefill: list[float] = []
        decode: list[float] = []
        given = []  # by memory, bytes a second before and after each repetition
        for repetition in range(n_repetitions + 1):  # the first one warms up
            given.append(stream.now())
            for work, seconds, n in ((read, prefill, n_prompt), (write, decode, n_generate)):
                if n:
                    with behind(sequence) as fork:
                        elapsed = work(scheduler, fork, ids[:n])
                    if repetition:
                        seconds.append(elapsed)
        given.append(stream.now())
    finally:
        sequence.release()
    limits = limits.or_better(measure_limits(runner.store, runner.team))  # if something else was running the first time
    limits = limits.or_better(Limits(max(given), 0))
    programs = runner.variant({adapters}).programs
    prefill_macs, decode_bytes = _macs_per_token(programs, n_prompt), _bytes_per_token(programs, depth, n_generate)
    speeds = _speeds("prefill", n_prompt, prefill) | _speeds("decode", n_generate, decode)
    return {
        "model": model.path.name,
        "adapters": {name: scale for name, scale in model.adapters.items() if scale},
        "isa": runner.isa.name,
        "n_threads": model.n_threads,
        "layout": model.layout,
        "n_prompt": n_prompt,
        "n_generate": n_generate,
        "depth": depth,
        "repetitions": n_repetitions,
        **speeds,
        "multiply_gigamacs_per_second": limits.macs / 1e9,
        "read_gigabytes_per_second": limits.read_bytes / 1e9,
        "prefill_macs_per_token": prefill_macs,
        "decode_bytes_per_token": decode_bytes,
        "prefill_share_of_multiply_limit": _share(speeds["prefill_tokens_per_second"], prefill_macs, limits.macs),
        "decode_share_of_read_limit": _share_of_memory(decode, n_generate * decode_bytes, given[1:]),
    }


def check_room(model: Model, n_tokens: int) -> None:
    """Raises UsageError when the context is too short for so many tokens."""
    if n_tokens > model.n_ctx:
        most = model.config.n_ctx_train
        advice = "choose a larger n_ctx" if n_tokens <= most else f"this model was trained on {most}: choose fewer"
        raise UsageError(f"{n_tokens} tokens do not fit into the context of {model.n_ctx}; {advice}", parameter="n_ctx")


def some_tokens(model: Model, n: int) -> list[int]:
    return [(17 * i + 3) % model.n_vocab for i in range(n)]


class Work(Request):
    """Tokens whose logits are looked at and forgotten, behind others that are in the cache."""

    def __init__(self, sequence: Sequence, ids: list[int], one_by_one: bool) -> None:
        super().__init__([*sequence.tokens, *ids], is_private=True, sequence=sequence)
        self._one_by_one = one_by_one

    @property
    def end(self) -> int:
        return self.n_cached + 1 if self._one_by_one else len(self.tokens)

    @property
    def n_pending(self) -> int:
        return min(super().n_pending, len(self.tokens) - self.n_cached)

    @property
    def is_ready(self) -> bool:
        return super().is_ready or self.n_cached == len(self.tokens)

    @property
    def first_wanted(self) -> int:
        return 0 if self._one_by_one else len(self.tokens) - 1

    def take(self, position: int, logits: np.ndarray, maxima: np.ndarray) -> None:
        maxima.argmax()


def read(scheduler: Scheduler, sequence: Sequence, ids: list[int]) -> float:
    """Seconds to read a prompt, with logits for its last token only."""
    return seconds_of(scheduler, Work(sequence, ids, one_by_one=False))


@contextmanager
def behind(sequence: Sequence) -> Iterator[Sequence]:
    """A sequence that goes on where one is, which stays as it is: with recurrent layers, it could not be cut again."""
    fork = sequence.fork(len(sequence))
    try:
        yield fork
    finally:
        fork.release()


def write(scheduler: Scheduler, sequence: Sequence, ids: list[int]) -> float:
    """Seconds to compute tokens one by one, as in writing an answer."""
    return seconds_of(scheduler, Work(sequence, ids, one_by_one=True))


def seconds_of(scheduler: Scheduler, work: Work) -> float:
    """How long a work takes. Its sequence stays the caller's."""
    started = time.perf_counter()
    scheduler.submit(work)
    try:
        scheduler.wait(work)
        return time.perf_counter() - started
    finally:
        work.sequence = None
        scheduler.retire(work)


def _speeds(work: str, n_tokens: int, seconds: list[float]) -> dict[str, float | None]:
    """Median, slowest and quickest repetition."""
    name = f"{work}_tokens_per_second"
    if not seconds:
        return dict.fromkeys([name, f"{name}_lowest", f"{name}_highest"])
    return {
        name: n_tokens / median(seconds),
        f"{name}_lowest": n_tokens / max(seconds),
        f"{name}_highest": n_tokens / min(seconds),
    }


def _share(tokens_per_second: float | None, per_token: float, limit: float) -> float | None:
    return None if tokens_per_second is None else tokens_per_second * per_token / limit


def _share_of_memory(seconds: list[float], n_bytes: float, given: list[float]) -> float | None:
    """Of what memory gave, bytes a second: before the first repetition, between one and the next, after the last."""
    shares = [2 * n_bytes / s / (before + after) for s, (before, after) in zip(seconds, pairwise(given), strict=False)]
    return median(shares) if shares else None


def _macs_per_token(programs: Programs, n_prompt: int) -> float:
    """Products with weights for each token of a prompt, of which the last one alone needs logits."""
    body, head = (sum(map(weight_macs, program.lowered.ops)) for program in programs)
    return body + head / n_prompt if n_prompt else 0


def _bytes_per_token(programs: Programs, depth: int, n_generate: int) -> float:
    """Weights and cache that are read for each token written, on average."""
    ops = [op for program in programs for op in program.lowered.ops]
    positions = range(depth, depth + n_generate)
    cache = sum(cache_bytes(op, position) for op in ops for position in positions)
    return sum(map(weight_bytes, ops)) + cache / n_generate if n_generate else 0
