"""Whose turn it is: of all threads that wait for requests, one runs the next step, and the others wait for its end."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Turns:
    """
    run:      held by whoever runs a step, or has the model for itself.
    n_steps:  that have ended, and whatever else those that wait should look at.
    """

    def __init__(self) -> None:
        self.run = threading.RLock()
        self.n_steps = 0
        self._lock = threading.RLock()  # a finalizer may tell while this thread has it
        self._changed = threading.Condition(self._lock)
        self._n_waiting = 0

    def tell(self) -> None:
        """Wake those that wait."""
        with self._lock:
            self.n_steps += 1
            if self._n_waiting:
                self._changed.notify_all()

    def wait(self, n_steps: int, is_ready: Callable[[], bool]) -> None:
        """Until a step has ended since there were n_steps, or nothing needs to be waited for."""
        with self._changed:
            self._n_waiting += 1
            try:
                self._changed.wait_for(lambda: self.n_steps != n_steps or is_ready())
            finally:
                self._n_waiting -= 1
