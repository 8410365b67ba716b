"""Progress on standard error: one line that renews itself on a terminal, one line per task elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from edgellm.cli.terminal import columns, note, one_line, size_text

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
        self.clear()

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
        self.clear()
        note(text)

    def _line(self, done: int, total: int, what: str, now: float) -> str:
        """The most that fits: the bar gives way first, then amounts and speed, then the end of the task's name."""
        task = one_line(self._task or "")
        percent = f"{100 * done // total} %" if total else self._amount(done) if done else ""
        amount = f"of {self._amount(total)}" if total else ""
        rate, left = self._speed(done, total, now)
        if self._fixed_task:
            rate, left = "", one_line(what)
        most = columns() - 1
        shapes = [
            *((width, (amount, rate, left)) for width in (_BAR_WIDTH, _BAR_WIDTH // 2, 0)),
            (0, (amount, "", left)),
            (0, ("", "", left)),
        ]
        lines = [_joined(f"{task}{_bar(done, total, width)} {percent:>5}".rstrip(), *rest) for width, rest in shapes]
        if fitting := [line for line in lines if len(line) <= most]:
            return fitting[0]
        behind = lines[-1][len(task) :]
        return f"{task[: max(most - len(behind) - 1, 0)]}…{behind}"[:most]

    def _speed(self, done: int, total: int, now: float) -> tuple[str, str]:
        """Bytes in a second and seconds left, in words, as soon as they can be told."""
        seconds = now - self._begun
        if seconds <= 1 or done <= self._begun_with:
            return "", ""
        rate = (done - self._begun_with) / seconds
        return f"{size_text(rate)}/s", f"{(total - done) / rate:.0f} s left" if total else ""

    def _amount(self, number: int) -> str:
        return str(number) if self._fixed_task else size_text(number)

    def _draw(self, line: str) -> None:
        sys.stderr.write(f"\r{line.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(line)

    def clear(self) -> None:
        """Take the line away, until there is more to say."""
        if self._width:
            sys.stderr.write(f"\r{' ' * self._width}\r")
            sys.stderr.flush()
            self._width = 0


def reading(progress: Progress, source: Path) -> Callable[[int, int, str], None]:
    """Progress of what is counted in bytes of a source: it names the file that has so many."""
    return lambda done, total, what: progress(done, total, f"reading {source.name}")


def _bar(done: int, total: int, width: int) -> str:
    if not total or not width:
        return ""
    filled = width * done // total
    return f" [{'#' * filled}{'.' * (width - filled)}]"


def _joined(begin: str, amount: str, *rest: str) -> str:
    return ", ".join(filter(None, [f"{begin} {amount}".rstrip(), *rest]))
