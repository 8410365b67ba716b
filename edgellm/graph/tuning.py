"""What is quickest on this machine: settings that change the speed of a program and nothing that it computes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edgellm.files import private
from edgellm.params import MAX_THREADS


@dataclass(frozen=True)
class Tuning:
    """The defaults suit most machines; `engine.tuner` measures them on this one.

    n_threads:    how many threads are quickest.
    chunk_bytes:  of weights that a thread takes at a time in decode.
    ahead_bytes:  how far in front of itself decode asks for weights, beyond the rows that it works on.
    few_tokens:   up to so many tokens, reading the weights once for each is quicker than unpacking tiles of them.
    """

    n_threads: int
    chunk_bytes: int = 1 << 19
    ahead_bytes: int = 1 << 13
    few_tokens: int = 3

    def save(self, path: Path) -> None:
        """Remember, in a file that nobody else can write; where that cannot be, every start measures, which is said."""
        private.keep(path, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> Tuning | None:
        """What was remembered, or None when there is nothing that can be used."""
        try:
            found = json.loads(private.read(path) or b"")
            tuning = cls(**{field.name: found[field.name] for field in fields(cls)})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return tuning if tuning.is_sensible() else None

    def is_sensible(self) -> bool:
        """Whether the settings are within the bounds of what is ever measured."""
        whole = (self.n_threads, self.chunk_bytes, self.ahead_bytes, self.few_tokens)
        return (
            all(type(value) is int for value in whole)
            and 1 <= self.n_threads <= MAX_THREADS
            and 1 << 10 <= self.chunk_bytes <= 1 << 24
            and 0 <= self.ahead_bytes <= 1 << 24
            and 1 <= self.few_tokens <= 16
        )
