"""Long prefixes on disk: what a text has left in the cache is there again after a restart.

Texts are kept in segments of SEGMENT blocks, and what is left at the end in a shorter one. A file is named by the key
of its last block, which stands for all tokens up to there: what two texts begin with in common is one file. Files are
written while the answer is read already, and the ones used least recently go when all take more than the limit.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.engine.adapter_set import AdapterSet
from edgellm.engine.block_file import BlockFile, read_blocks, write_blocks
from edgellm.engine.block_pool import key_after
from edgellm.engine.kv_cache import KVCache, Sequence, root_of
from edgellm.errors import CacheFullError, EdgellmError
from edgellm.files import prefixes_folder, private
from edgellm.files.unfinished import clear_unfinished, unfinished
from edgellm.kernels.records import KV_BLOCK

SEGMENT = 8  # blocks
LEAST_TOKENS = SEGMENT * KV_BLOCK  # shorter texts are not kept
MOST_WAITING = 4  # texts that are still to be written; others are not kept
SUFFIX = ".kv"


class DiskCache:
    """The prefixes of one model with its settings, in a private folder of their own.

    bound:    what keys and values depend on, see `block_file`; asked for when it is first needed.
    release:  takes back a sequence whose blocks are written, from any thread.
    n_bytes:  that the files of all models may take together.
    """

    def __init__(
        self, cache: KVCache, bound: Callable[[], dict[str, Any]], release: Callable[[Sequence], None], n_bytes: int
    ) -> None:
        self._cache, self._bound_to, self._release, self._n_bytes = cache, bound, release, n_bytes
        self._bound: dict[str, Any] | None = None
        self._waiting: queue.Queue[Sequence | None] = queue.Queue(MOST_WAITING)
        self._writer: threading.Thread | None = None
        self._doubted: set[bytes] = set()  # keys of files that may be damaged, as one before them was

    @property
    def bound(self) -> dict[str, Any]:
        if self._bound is None:
            self._bound = self._bound_to()
        return self._bound

    @property
    def folder(self) -> Path:
        return prefixes_folder() / str(self.bound["model"])

    def bring(self, token_ids: list[int], adapters: AdapterSet) -> None:
        """Put into the cache what files have of a text and the cache has not.

        A file that cannot be used is removed. Those behind it are of no use now, and may be no better: they are looked
        at when the text is kept, for nobody waits for that.
        """
        n_whole = len(token_ids) // KV_BLOCK
        if n_whole <= SEGMENT or not self.folder.is_dir():
            return
        keys = [root_of(adapters)]
        for start in range(0, n_whole * KV_BLOCK, KV_BLOCK):
            keys.append(key_after(keys[-1], token_ids[start : start + KV_BLOCK]))
        at = 0
        while at < n_whole:
            ends = [at + SEGMENT, *range(min(n_whole, at + SEGMENT - 1), at, -1)]
            end = next((end for end in ends if end <= n_whole and self._has(keys[end])), None)
            if end is None:
                return
            is_known = all(pool.whole(keys[end]) is not None for pool in self._cache.pools)
            if not is_known and not self._read(keys, at, end, adapters):
                return
            at = end

    def _has(self, key: bytes) -> bool:
        return self._path(key).is_file()

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()}{SUFFIX}"

    def _read(self, keys: list[bytes], start: int, end: int, adapters: AdapterSet) -> bool:
        """Whether a segment is in the cache now."""
        found = self._usable(keys, start, end)
        if found is None:
            self._doubted.update(keys[end + 1 :])
            return False
        try:
            self._cache.put(keys[start:], found.token_ids, start, found.runs, found.layers, adapters, found.states)
        except CacheFullError:
            return False
        with contextlib.suppress(OSError):
            os.utime(self._path(keys[end]))
        return True

    def _usable(self, keys: list[bytes], start: int, end: int) -> BlockFile | None:
        """What the file of a segment holds; None where it is of no use, and then it is gone."""
        path = self._path(keys[end])
        try:
            private.check(path.parent)
            if not private.is_ours_or_nothing(path):
                return None
            found = read_blocks(path, self._cache, self.bound | {"adapters": keys[0].hex()})
            if found.start == start and _keys_behind(keys[start], found.token_ids) == keys[start + 1 : end + 1]:
                return found
        except (OSError, EdgellmError):  # it was made for another version, or is damaged: it would be so again
            pass
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def keep(self, sequence: Sequence) -> None:
        """Write what a text has in the cache, soon; never waits."""
        if len(sequence) <= LEAST_TOKENS:
            return
        fork = sequence.fork(len(sequence) // KV_BLOCK * KV_BLOCK)
        try:
            self._waiting.put_nowait(fork)
        except queue.Full:
            self._release(fork)
            return
        if self._writer is None or not self._writer.is_alive():
            self._writer = threading.Thread(target=self._write_all, daemon=True, name="edgellm-prefixes")
            self._writer.start()

    def _write_all(self) -> None:
        while (sequence := self._waiting.get()) is not None:
            try:
                with contextlib.suppress(OSError, EdgellmError):  # it can be computed again
                    self._write(sequence)
            finally:
                self._release(sequence)

    def _write(self, sequence: Sequence) -> None:
        sequence.remember()
        private.make(prefixes_folder())
        private.make(self.folder)
        clear_unfinished(self.folder)
        keys, n_whole = sequence.keys, len(sequence) // KV_BLOCK
        bound = self.bound | {"adapters": keys[0].hex()}
        n_new = 0
        for start in range(0, n_whole, SEGMENT):
            end = min(start + SEGMENT, n_whole)
            path = self._path(keys[end])
            if keys[end] in self._doubted:
                self._doubted.discard(keys[end])
                self._usable(keys, start, end)
            if not path.exists():
                with unfinished(path, permissions=0o600, to_disk=False) as file:
                    write_blocks(file, sequence, bound, start, end)
                n_new += 1
        if n_new:
            make_room(self._n_bytes)

    def close(self) -> None:
        """Wait until all is written."""
        if self._writer is not None and self._writer.is_alive():
            self._waiting.put(None)
            self._writer.join()


def _keys_behind(key: bytes, token_ids: list[int]) -> list[bytes]:
    keys = []
    for start in range(0, len(token_ids), KV_BLOCK):
        key = key_after(key, token_ids[start : start + KV_BLOCK])
        keys.append(key)
    return keys


def files() -> list[tuple[Path, os.stat_result]]:
    """All files of prefixes, the least recently used first."""
    found = []
    for path in prefixes_folder().glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):
            found.append((path, path.stat()))
    return sorted(found, key=lambda one: one[1].st_mtime_ns)


def make_room(n_bytes: int) -> int:
    """Remove the files used least recently until all take no more than n_bytes; returns how many bytes that freed."""
    found = files()
    total, freed = sum(status.st_size for _, status in found), 0
    for path, status in found:
        if total - freed <= n_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            freed += status.st_size
    for folder in prefixes_folder().glob("*/"):
        clear_unfinished(folder)  # what killed processes have left
        with contextlib.suppress(OSError):
            folder.rmdir()  # refused while something is in it
    return freed
