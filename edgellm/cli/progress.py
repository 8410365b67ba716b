"""Progress on standard error: one line that renews itself on a terminal, one line per task elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

from edgellm.cli.terminal import note, one_line, size_text

_RENEW_SECONDS = 0.1
_BAR_WIDTH = 24


class Progress:
    """Call it with (done, total, what); total is 0 while unknown.

    With a `task`, the numbers count its steps and `what` is the present one; without, bytes of `what`. A `quiet` one
    says nothing where there is no terminal.
    """

    def __init__(self, task: str | None = None, quiet: bool = False) -> None:
        self._fixed_task = task
        self._quiet = quiet
        self._task: str | None = None
        self._begun = 0.0  # when the present task began, and what was done of it then
        self._begun_with = 0
        self._drawn = 0.0
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._clear()

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        task = self._fixed_task or what
        is_new = task != self._task
        if is_new:
            self._task, self._begun, self._begun_with, self._drawn = task, now, done, 0.0
        if not sys.stderr.isatty():
            if is_new and not self._quiet:
                note(f"{task} ({self._amount(total)})" if total else task)
        elif now - self._drawn >= _RENEW_SECONDS or done == total:
            self._drawn = now
            self._draw(self._line(done, total, what, now))

    def note(self, text: str) -> None:
        """Say a line of its own in between."""
        self._clear()
        note(text)

    def _line(self, done: int, total: int, what: str, now: float) -> str:
        line = one_line(self._task or "")
        if total:
            filled = _BAR_WIDTH * done // total
            line += f" [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {100 * done // total:3d} %"
            line += f" of {self._amount(total)}"
        elif done:
            line += f" {self._amount(done)}"
        if self._fixed_task:
            return f"{line}, {one_line(what)}"
        seconds = now - self._begun
        if seconds > 1 and done > self._begun_with:
            rate = (done - self._begun_with) / seconds
            line += f", {size_text(rate)}/s"
            if total:
                line += f", {(total - done) / rate:.0f} s left"
        return line

    def _amount(self, number: int) -> str:
        return str(number) if self._fixed_task else size_text(number)

    def _draw(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(line)

    def _clear(self) -> None:
        if self._width:
            sys.stderr.write(f"\r{' ' * self._width}\r")
            sys.stderr.flush()
            self._width = 0
