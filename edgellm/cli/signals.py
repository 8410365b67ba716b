"""Being told to end, by `kill`, a service manager or a terminal that closes."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the program as an error does: half-written files are removed on the way out.

    The exit status is 128 and the signal's number, as shells count. What is ignored (`nohup`) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    usual = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in usual:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not disturb the clearing up
    sys.exit(128 + number)
