"""Making tiles beside a model that already answers from its file, which then goes on from them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from edgellm.errors import KernelError
from edgellm.formats.tensor import Tensor
from edgellm.formats.tile_file import Tiles
from edgellm.graph import Graph, Target, lower
from edgellm.kernels.store import KernelStore

SECONDS_TO_FINISH = 2.0  # who closes a model waits so long for tiles that are nearly there, and they are not lost
NICENESS = 10  # threads that compute come first


class _GivenUp(Exception):
    """The model was closed before its tiles were there."""


class LayingOut:
    """A thread that makes the file of tiles, and the kernels that read them, for `found` to have them.

    graphs, target:  how the model is run now. The kernels are compiled before the tiles are told of, so that nobody
                     waits for them.

    What goes wrong, such as a disk that is full by now, leaves the model with its file.
    """

    def __init__(self, tiles: Tiles, graphs: Iterable[Graph], target: Target) -> None:
        self._tiles, self._isa = tiles, target.isa
        like = replace(target, tiles={place.tensor: np.empty(0, np.uint8) for place in tiles.places})
        self._kernels = [kernel for graph in graphs for kernel in lower(graph, like).kernels]
        self._found: Mapping[Tensor, np.ndarray] | None = None
        self._is_given_up = False
        self._done, self._started = 0, time.monotonic()
        self._thread = threading.Thread(target=self._make, name="laying out weights", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    @property
    def found(self) -> Mapping[Tensor, np.ndarray] | None:
        """The tiles, when it is over and they are there."""
        return self._found if self.is_over else None

    def wait(self) -> None:
        self._thread.join()

    def close(self) -> None:
        """End soon: with the file, if that is a matter of moments, or without."""
        seconds = time.monotonic() - self._started
        if self._done * (seconds + SECONDS_TO_FINISH) >= self._tiles.n_bytes * seconds:
            self._thread.join(SECONDS_TO_FINISH)
        self._is_given_up = True
        self._thread.join()

    def _make(self) -> None:
        if sys.platform == "linux":  # elsewhere a process has one niceness for all of its threads
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        # A full disk; a cache folder that nobody can write; an interpreter that ends; kernels that cannot be made.
        with contextlib.suppress(OSError, RuntimeError, KernelError, _GivenUp):
            KernelStore(self._isa).load(self._kernels, self._note)  # which keeps them for the store of the model
            self._note(0, 0, "")
            self._tiles.write(1, self._note)
            self._found = self._tiles.read(1)

    def _note(self, done: int, total: int, what: str) -> None:
        if self._is_given_up:
            raise _GivenUp
        self._done = done
