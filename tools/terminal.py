"""A program in a terminal of our own: what it draws is seen as a person sees it, and keys are typed.

The tests of the chat use it, and `record_chat.py`. Needs pexpect and pyte (in the extra `test`), and a POSIX system.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pexpect
import pyte


class _Display(pyte.Screen):
    """Answers when a program asks where the cursor is."""

    DIM = "dim"  # the colour of dim text, which pyte does not know

    answer: Callable[[str], Any] = staticmethod(lambda data: None)

    def write_process_input(self, data: str) -> None:
        self.answer(data)

    def select_graphic_rendition(self, *attrs: int, **how: Any) -> None:
        super().select_graphic_rendition(*attrs, **how)
        if 2 in attrs:
            self.cursor.attrs = self.cursor.attrs._replace(fg=self.DIM)


class Terminal:
    """A program in a pseudo-terminal of some size. `text` is what the screen shows; `raw`, all that was written."""

    def __init__(self, command: list[str], columns: int = 80, lines: int = 40, seconds: float = 20, **environ: str):
        env = {**os.environ, "TERM": "xterm-256color", **environ}
        for name in ("COLUMNS", "LINES", *(() if "NO_COLOR" in environ else ("NO_COLOR",))):
            env.pop(name, None)
        self._child = pexpect.spawn(command[0], command[1:], env=env, dimensions=(lines, columns), timeout=seconds)
        self._child.delaybeforesend = None
        self._display = _Display(columns, lines)
        self._display.answer = self._child.send
        self._stream = pyte.ByteStream(self._display)
        self._seconds = seconds
        self.raw = b""

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._display.display).rstrip()

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    @property
    def display(self) -> pyte.Screen:
        return self._display

    def type(self, keys: str) -> None:
        self._child.send(keys)

    def paste(self, text: str) -> None:
        self.type(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, lines: int) -> None:
        self._display.resize(lines, columns)
        self._child.setwinsize(lines, columns)

    def wait_for(self, what: str | Callable[[str], object]) -> str:
        """Read until the screen shows a text, or a function of its text is true."""
        is_there = (lambda text: what in text) if isinstance(what, str) else what
        until = time.monotonic() + self._seconds
        while not is_there(self.text):
            if time.monotonic() > until:
                raise AssertionError(f"waited for {what!r}; the screen shows:\n{self.text}\n{self.raw[-400:]!r}")
            if not self._read():
                raise AssertionError(f"the program ended, and {what!r} never came; the screen shows:\n{self.text}")
        return self.text

    def prompt(self) -> str:
        """Wait until an empty prompt waits for a message."""
        return self.wait_for(lambda text: self._display.display[self._display.cursor.y].rstrip() == ">>>")

    def look(self, seconds: float = 0.1) -> str:
        """Read what comes within a while."""
        self._read(seconds)
        return self.text

    def _read(self, seconds: float = 0.1) -> bool:
        """Read what there is; False when there will be nothing any more."""
        try:
            data = self._child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def end(self) -> int | None:
        """Wait for the program's end, and give its exit status."""
        until = time.monotonic() + self._seconds
        while self._read() and time.monotonic() < until:
            pass
        self._child.close()
        return self._child.exitstatus

    def kill(self) -> None:
        self._child.close(force=True)
