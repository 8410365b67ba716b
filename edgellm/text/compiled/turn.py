"""When kernels take over from Python: as soon as a tokenizer has met so much text that it pays.

A prompt as people type it never waits for kernels to be loaded, nor for a vocabulary's tables. To compile kernels takes
as long as to encode megabytes, so only a text of that size waits for it; the machine has them from then on, and some
machines from the start (`edgellm.kernels.prebuilt`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from edgellm.errors import KernelError

if TYPE_CHECKING:
    from edgellm.kernels.store import KernelStore
    from edgellm.text.compiled.words import CompiledWords

SHORT = 1 << 10  # characters of texts that go through Python whatever there is, for it waits for nothing
READY_FROM = SHORT  # where a model runs: what loads kernels is there already, and Python has tables to make as well
LOAD_FROM = 1 << 16  # characters, of all texts so far, from which kernels are loaded where none runs
COMPILE_FROM = 1 << 20  # characters to be encoded now from which kernels are compiled where there are none


Make = Callable[["KernelStore"], "CompiledWords | None"]


class Turn:
    """Makes a tokenizer's `CompiledWords` when it is their turn. May be used by several threads at once."""

    def __init__(self) -> None:
        self._words: CompiledWords | None = None
        self._n_seen = 0
        self._look_from = 0  # characters from which it is looked again whether there are kernels
        self._done = False
        self._lock = threading.Lock()

    def words(self, n_chars: int, make: Make) -> CompiledWords | None:
        """What encodes texts of so many characters in all; None: Python does.

        make:  makes it, from a store that has loaded its kernels; None: the tokenizer has none. It is not kept: a
               tokenizer that somebody is done with gives its file back at once.
        """
        self._n_seen += n_chars
        if n_chars < SHORT:
            return None
        # While one thread makes it, others go on as before.
        if self._is_due(n_chars) and self._lock.acquire(blocking=False):
            try:
                if self._is_due(n_chars):  # still
                    self._look(n_chars, make)
            finally:
                self._lock.release()
        return self._words

    def _is_due(self, n_chars: int) -> bool:
        """Whether to look for kernels, before texts of so many characters are encoded."""
        look_from = max(self._look_from, READY_FROM if _loads_kernels() else LOAD_FROM)
        return not self._done and (self._n_seen >= look_from or n_chars >= COMPILE_FROM)

    def _look(self, n_chars: int, make: Make) -> None:
        from edgellm.text.compiled.words import kernels  # not imported before they are of use

        try:
            store = _store()
            if n_chars < COMPILE_FROM and not store.has(kernels()):
                self._look_from = 2 * self._n_seen
                return
            self._done = True
            store.load(kernels())
        except KernelError:
            self._done = True
            return  # Python does it, as it does for short texts; who runs a model is told what is wrong
        self._words = make(store)


def _loads_kernels() -> bool:
    """Whether this process has loaded kernels, so that some more take little time."""
    return "edgellm.kernels.store" in sys.modules


@cache
def _store() -> KernelStore:
    """The same one for all tokenizers."""
    from edgellm.kernels import isa
    from edgellm.kernels.store import KernelStore

    return KernelStore(isa.choose())
