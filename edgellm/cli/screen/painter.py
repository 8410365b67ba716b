"""A few lines of a terminal that are drawn again while what they show is still growing."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class Painter:
    """Keeps the lines that may still change at the end of the screen. Only lines that have changed are written."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def show(self, lines: Sequence[str]) -> None:
        """Draw `lines`, which may hold colours, in place of those of before. None is wider than the terminal."""
        size = shutil.get_terminal_size()
        old, new = self._lines, list(lines)
        same = 0
        while same < min(len(old), len(new)) and old[same] == new[same]:
            same += 1
        self._lines = new
        if same == len(old) == len(new):
            return
        rows = [_rows(line, size.columns) for line in old]
        while same < len(old) and sum(rows[same:]) > size.lines - 1:
            same += 1  # it has left the screen, and cannot be drawn again
        if same == len(old):
            text = "\n" * bool(old) + "\n".join(new[same:])
        elif same == len(old) - 1 < len(new) and new[same].startswith(old[same]):
            text = "\n".join(new[same:])[len(old[same]) :]
        else:
            up = sum(rows[same:]) - 1
            text = "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J" + "\n".join(new[same:])
        sys.stdout.write(text)
        sys.stdout.flush()

    def keep(self) -> None:
        """What is drawn stays as it is; the next lines come below."""
        if self._lines:
            self._lines = []
            sys.stdout.write("\n")
            sys.stdout.flush()


def _rows(line: str, columns: int) -> int:
    """How many rows a line takes, also on a terminal that has become narrower and has wrapped it."""
    from rich.cells import cell_len

    return max(1, -(-cell_len(_ESCAPES.sub("", line)) // columns))
