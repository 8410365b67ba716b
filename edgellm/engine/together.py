"""Many answers, so many of them at once: each pass over the weights gives all of them their next token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from edgellm.engine.generation import Generation

Key = TypeVar("Key")
DEFAULT_PARALLEL = 8


class Job(Generic[Key]):
    """Answers that belong together, by a key; error: what went wrong with them."""

    def __init__(self, key: Key, generations: Sequence[Generation]) -> None:
        self.key, self.generations = key, list(generations)
        self.error: Exception | None = None


def together(jobs: Iterable[Job[Key]], n_parallel: int = DEFAULT_PARALLEL) -> Iterator[Job[Key]]:
    """The jobs as they end, with all of their answers. A new one begins as soon as there is room for it.

    jobs are taken one by one, as they are begun. Who stops reading ends those that are computed.
    """
    waiting, going = iter(jobs), list[Job[Key]]()
    is_all = False
    try:
        while True:
            while not is_all and sum(len(job.generations) for job in going) < n_parallel:
                job = next(waiting, None)
                if job is None:
                    is_all = True
                    break
                for generation in job.generations:
                    generation.go_on()
                going.append(job)
            if not going:
                return
            for job in [job for job in going if all(generation.is_computed for generation in job.generations)]:
                going.remove(job)
                _read(job)
                yield job
            if going:
                try:
                    next((one for one in going[0].generations if not one.is_computed), going[0].generations[0]).step()
                except Exception as problem:
                    job = going.pop(0)
                    _end(job)
                    job.error = problem
                    yield job
    finally:
        for job in going:
            _end(job)


def _read(job: Job[Key]) -> None:
    """Take the text, all of which is there."""
    try:
        for generation in job.generations:
            for _ in generation:
                pass
    except Exception as problem:
        _end(job)
        job.error = problem


def _end(job: Job[Key]) -> None:
    for generation in job.generations:
        generation.close()
