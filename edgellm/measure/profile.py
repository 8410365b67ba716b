"""Where the time goes: the ops of one prefill batch and of one decode step, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from edgellm.engine.kv_cache import Sequence
from edgellm.engine.model import Model
from edgellm.engine.runner import Programs, Runner
from edgellm.engine.scheduler import Scheduler
from edgellm.graph.cost import cache_bytes, weight_bytes, weight_macs
from edgellm.graph.profiler import Profiler, Timed
from edgellm.measure.bench import behind, check_room, read, some_tokens, write


@dataclass
class Row:
    """All ops of a name (kernel and format), added up.

    seconds:     includes what the profiler adds to every op, see `graph.profiler`.
    share:       of the seconds of all rows.
    read_bytes:  of weights, and for a single token also of keys and values.
    macs:        products with weights.
    """

    name: str
    count: int = 0
    seconds: float = 0.0
    share: float = 0.0
    read_bytes: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Profile:
    """One batch of tokens by the names of its ops, slowest first.

    seconds:             all rows together.
    seconds_unprofiled:  the same batch in an ordinary run, where ops overlap; with the Python around it.
    """

    n_tokens: int
    seconds: float
    seconds_unprofiled: float
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def profile(model: Model, n_prompt: int, n_repetitions: int = 5, depth: int = 0) -> dict[str, Profile]:
    """One batch of up to n_prompt tokens ("prefill") and one token ("decode"), behind `depth` others.

    Times are medians over repetitions, op by op.
    """
    runner, scheduler = model._runner, model._scheduler
    runner.wait_for_tiles()
    n_batch = min(n_prompt, runner.n_batch)
    check_room(model, depth + max(n_batch, 1))
    ids = some_tokens(model, max(depth, n_batch, 1))
    adapters = model._adapters.usual
    programs = runner.variant({adapters}).programs
    sequence = runner.cache.sequence(adapters)

    def repeat(work: Callable[[Scheduler, Sequence, list[int]], float], n_tokens: int) -> Iterator[float]:
        for _ in range(n_repetitions + 1):  # the first one warms up
            with behind(sequence) as fork:
                seconds = work(scheduler, fork, ids[:n_tokens])
            yield seconds

    try:
        read(scheduler, sequence, ids[:depth])
        result = {}
        for name, work, n_tokens in (("prefill", read, n_batch), ("decode", write, 1)):
            _, *unprofiled = repeat(work, n_tokens)
            runs: list[list[Timed]] = []
            with _profiled(runner, programs) as profiler:
                for _ in repeat(work, n_tokens):
                    runs.append(profiler.timed)
                    profiler.timed = []
            rows = _rows(runs[1:], depth if name == "decode" else None)
            result[name] = Profile(n_tokens, sum(row.seconds for row in rows), median(unprofiled), rows)
        return result
    finally:
        sequence.release()


@contextmanager
def _profiled(runner: Runner, programs: Programs) -> Iterator[Profiler]:
    profiler = Profiler(runner.store, runner.n_threads, max(len(program.ops) for program in programs))
    for program in programs:
        program.team = profiler
    try:
        yield profiler
    finally:
        for program in programs:
            program.team = runner.team
        profiler.close()


def _rows(runs: list[list[Timed]], position: int | None) -> list[Row]:
    """position: of the one token, if it is one."""
    rows: dict[str, Row] = {}
    for same in zip(*runs, strict=True):
        op, kernel, n_tokens = same[0].op, same[0].kernel, same[0].n_tokens
        name = op.name_of(kernel)
        row = rows.setdefault(name, Row(name))
        row.count += 1
        row.seconds += median(timed.seconds for timed in same)
        row.read_bytes += weight_bytes(op) + (cache_bytes(op, position) if position is not None else 0)
        row.macs += weight_macs(op) * n_tokens
    total = sum(row.seconds for row in rows.values())
    for row in rows.values():
        row.share = row.seconds / total
    return sorted(rows.values(), key=lambda row: -row.seconds)
