"""Sessions on disk: what the cache has of a text, to go on with later without computing it again."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.engine.block_file import FAMILY, read_blocks, write_blocks
from edgellm.engine.bound import bound_to
from edgellm.engine.kv_cache import root_of
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import CacheFullError, FileProblem, MemoryLimitError
from edgellm.files import atomic_write, check_room


class Session(NamedTuple):
    """A text that was loaded: its tokens are in the cache. note: what who saved it has said."""

    token_ids: list[int]
    note: str


def save_session(scheduler: Scheduler, path: Path, token_ids: list[int], adapters: AdapterSet, note: str = "") -> int:
    """Write what the cache has of a text; returns how many of its first tokens that are.

    The file takes its name when it is whole, and only its owner can read it. Raises FileProblem when it cannot be
    written, and for a file of that name that is something else, which would be lost.
    """
    _refuse_others(path)
    with scheduler.alone():
        scheduler.update_requests()
        sequence = scheduler.prefixes.longest(token_ids, scheduler.live(), adapters)
        try:
            bound = bound_to(scheduler.runner) | {"adapters": root_of(adapters).hex()}
            check_room(path, sequence.n_bytes)
            with atomic_write(path, private=True) as file:
                write_blocks(file, sequence, bound, note=note)
            return len(sequence)
        except OSError as problem:
            raise FileProblem(f"{path}: the session is not saved: {problem.strerror}") from None
        finally:
            sequence.release()


def _refuse_others(path: Path) -> None:
    """Raise FileProblem for a file that is no session, of this version or another, and holds something."""
    try:
        if not path.is_file():  # what else may be there is told when it is written
            return
        with open(path, "rb") as file:
            head = file.read(len(FAMILY))
    except OSError as problem:
        raise FileProblem(f"{path}: the session is not saved: {problem.strerror}") from None
    if head and head != FAMILY:
        raise FileProblem(
            f"{path} is no session, and saving one there would overwrite it; choose another name, or remove it"
        )


def load_session(scheduler: Scheduler, path: Path, adapters: AdapterSet = NO_ADAPTERS) -> Session:
    """Put what a file has into the cache: from now on, texts that begin like it go on from there.

    Raises FormatError for a file that is none, cut short or damaged, FileProblem for one of another model, version, CPU
    or other settings, MemoryLimitError where the cache is too small for it.
    """
    with scheduler.alone():
        cache = scheduler.runner.cache
        found = read_blocks(path, cache, bound_to(scheduler.runner) | {"adapters": root_of(adapters).hex()})
        try:
            firsts = [run.first for run in found.runs]
            sequence = cache.restored(found.token_ids, firsts, found.layers, adapters, found.states)
        except CacheFullError:
            raise MemoryLimitError(
                f"{path} holds {len(found.token_ids)} tokens, and the cache has no room for them; choose a larger "
                "cache_bytes",
                parameter="cache_bytes",
            ) from None
        sequence.remember(whole_blocks=False)
        sequence.release()
    return Session(found.token_ids, found.note)
