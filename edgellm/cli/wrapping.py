"""Breaking lines between words while a text is still coming."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

_TAB = 8


def wrapped(text: str, columns: int) -> str:
    """A whole text in lines of at most so many columns."""
    wrapper = Wrapper(lambda: columns)
    return wrapper.push(text) + wrapper.finish()


class Wrapper:
    """Give it pieces of a text; it gives them back with line ends where a line would be longer than the terminal.

    The last word stays here until it is known to have ended. A word that is longer than a line is broken; characters
    two cells wide (Chinese, Japanese, Korean) are words of their own, as they are where such text is set.

    columns:  asked for every word, so that a terminal may change its size.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._column = 0  # cells that are taken in the present line
        self._spaces = self._word = ""

    def push(self, text: str) -> str:
        """What of the text so far can be shown."""
        return "".join(map(self._take, text))

    def finish(self) -> str:
        """What is left; the next text begins a line."""
        rest = self._placed()
        self._column, self._spaces = 0, ""
        return rest

    def _take(self, character: str) -> str:
        if character == "\n":
            shown = self._placed() + "\n"
            self._column, self._spaces = 0, ""
            return shown
        if character in " \t":
            shown = self._placed()
            self._spaces += character
            return shown
        if _cells(character) == 2:
            shown = self._placed()
            self._word = character
            return shown + self._placed()
        self._word += character
        return self._placed() if _width(self._word) >= self._columns() else ""

    def _placed(self) -> str:
        """The word and the spaces before it, in this line or the next."""
        word, spaces, most = self._word, self._spaces, self._columns()
        if not word:
            return ""
        self._word = self._spaces = ""
        after = _after(spaces, self._column) + _width(word)
        if self._column and after > most:
            self._column = _width(word)
            return f"\n{word}"
        self._column = after
        return spaces + word


def _after(spaces: str, column: int) -> int:
    for space in spaces:
        column += _TAB - column % _TAB if space == "\t" else 1
    return column


def _width(text: str) -> int:
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    """How many cells of a terminal a character takes (Unicode Standard Annex 11)."""
    if character < "\u0300":
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
