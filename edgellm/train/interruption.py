"""Being asked to stop in the middle of a run: by Ctrl-C, `kill`, or a terminal that closes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Asked:
    """Whether somebody asked, and by which signal."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


_current: list[Asked] = []  # of the runs of the main thread, the innermost last


def is_asked() -> bool:
    """Whether somebody asked, for what takes long within a step."""
    return any(_current)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Inside, a first signal is only noted, so that no step is left half done; a second one acts at once.

    After the block, what was noted acts as it would have done outside: Ctrl-C raises KeyboardInterrupt. What is
    ignored stays ignored, and off the main thread, which alone has signals, nothing changes.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    # None is a handler that was not set by Python.
    usual = {number: signal.getsignal(number) for number in _ASKING}
    usual = {number: handler for number, handler in usual.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        asked.signal = number
        restore()

    for number in usual:
        signal.signal(number, note)
    _current.append(asked)
    try:
        yield asked
    finally:
        _current.remove(asked)
        restore()
    if asked.signal is not None:
        signal.raise_signal(asked.signal)
