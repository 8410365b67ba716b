"""What is quickest on this machine: settings that change the speed of a program and nothing that it computes."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from edgellm.dataclass import dataclass
from edgellm.files import private
from edgellm.kernels.records import PREFETCHES
from edgellm.params import MAX_THREADS


@dataclass(frozen=True)
class Tuning:
    """The defaults suit most machines; `graph.tuner` measures them on this one.

    n_threads:    how many threads are quickest.
    chunk_bytes:  of weights that a thread takes at a time in decode.
    prefetch_bytes: how far in front of itself decode prefetches weights, beyond the rows that it works on.
    small_batch:  up to so many tokens, the kernels for small batches are quicker than unpacking weights for all tokens.
    tiles:        whether weights that lie as tiles are clearly quicker; tiles_small_batch: the same as above for these.
    tiles_prefetch_bytes: how far in front of itself decode prefetches tiles. tiles_prefetch: into which cache, for one
        token: one of records.PREFETCHES.
    """

    n_threads: int
    chunk_bytes: int = 1 << 19
    prefetch_bytes: int = 1 << 13
    small_batch: int = 3
    tiles: bool = False
    tiles_small_batch: int = 16
    tiles_prefetch_bytes: int = 1 << 13
    tiles_prefetch: str = "non_temporal"

    def save(self, path: Path) -> None:
        """Remember, in a file that nobody else can write; where that cannot be, every start measures, which is said."""
        private.keep(path, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> Tuning | None:
        """What was remembered, or None when there is nothing that can be used."""
        try:
            found = json.loads(private.read(path) or b"")
            # What was remembered without a word on tiles is good for all else.
            names = [field.name for field in fields(cls) if field.name in found or not field.name.startswith("tiles")]
            tuning = cls(**{name: found[name] for name in names})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return tuning if tuning.is_sensible() else None

    def is_sensible(self) -> bool:
        """Whether the settings are within the bounds of what is ever measured."""
        whole = (self.n_threads, self.chunk_bytes, self.prefetch_bytes, self.small_batch, self.tiles_small_batch)
        return (
            all(type(value) is int for value in whole)
            and 1 <= self.n_threads <= MAX_THREADS
            and 1 << 10 <= self.chunk_bytes <= 1 << 24
            and 0 <= self.prefetch_bytes <= 1 << 24
            and 1 <= self.small_batch <= 16
            and 1 <= self.tiles_small_batch <= 32
            and type(self.tiles) is bool
            and self.tiles_prefetch in PREFETCHES
            and type(self.tiles_prefetch_bytes) is int
            and 0 <= self.tiles_prefetch_bytes <= 1 << 24
        )
