"""The text of an answer, from the thread that computes it straight to the client's socket.

While a model writes, the event loop would have nothing else to do on that connection than to carry each text over. For
that it has to wake up, to get the interpreter from the driver's thread and a core from the engine, which costs more
than all the rest. So it lets the driver's thread write, as long as it has nothing to send there itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from starlette.types import Scope

EXTENSION = "edgellm.wire"  # of the ASGI scope
NOTHING = -1


class Wire:
    """The connection of one request, whose answer goes out in HTTP's chunks.

    sent_at:  when text went out here last, on the clock of `time.monotonic`.

    Parts of an answer are counted, so that none overtakes another: the driver's thread may write while the event loop
    has sent as many as it was told of, and all of that has left the transport.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        # A duplicate of the socket: what its number means does not change when the connection is closed meanwhile.
        self._file = NOTHING
        self._n_offered = NOTHING
        self._rest = b""  # that the socket had no room for
        self._is_closed = False
        self.sent_at = 0.0

    # --- in the event loop --------------------------------------------------------------------------------

    def offer(self, n_parts: int) -> None:
        """So many parts have been sent, and from now on the driver's thread may write; unless something waits still."""
        if self._is_closed or self._transport.is_closing() or self._transport.get_write_buffer_size():
            return
        if self._file == NOTHING:
            try:
                self._file = os.dup(self._transport.get_extra_info("socket").fileno())
            except OSError:  # too many files are open
                return
        self._n_offered = n_parts

    def stop(self) -> None:
        """The event loop is about to send something, which comes after all that was written here."""
        with self._lock:
            self._n_offered = NOTHING
            rest, self._rest = self._rest, b""
        if rest:
            self._transport.write(rest)

    def close(self) -> None:
        """Nothing more is written here."""
        self.stop()
        self._is_closed = True
        file, self._file = self._file, NOTHING
        if file != NOTHING:
            os.close(file)

    # --- in the driver's thread ---------------------------------------------------------------------------

    def send(self, n_parts: int, say: Callable[[], bytes]) -> bool:
        """Send what `say` gives; False, without asking it, unless that is offered to who has told of n_parts."""
        with self._lock:
            if self._n_offered != n_parts:
                return False
            said = say()
            if not said:
                return True  # a chunk of nothing would end the answer
            chunk = b"%x\r\n%b\r\n" % (len(said), said)
            try:
                n_sent = os.write(self._file, chunk)
            except OSError:  # no room, or the client has left, of which the event loop hears by itself
                n_sent = 0
            self.sent_at = monotonic()
            if n_sent < len(chunk):
                self._n_offered, self._rest = NOTHING, chunk[n_sent:]
                self._loop.call_soon_threadsafe(self.stop)
            return True


def wire_of(scope: Scope) -> Wire | None:
    """That of a request; None where what is below the application has none."""
    extensions: dict[str, Any] = scope.get("extensions") or {}
    found = extensions.get(EXTENSION)
    return found if isinstance(found, Wire) else None
