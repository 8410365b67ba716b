"""Where the pieces of an answer are shown as they come."""

from __future__ import annotations

import importlib.util
import sys
from typing import Protocol

from edgellm.cli.terminal import columns, harmless, obeys_escapes
from edgellm.cli.wrapping import Wrapper


class View(Protocol):
    """Shows one answer after the other on standard output. `end` finishes an answer and its last line."""

    def show(self, piece: str) -> None: ...

    def end(self) -> None: ...


class PlainView:
    """For pipes and files: every character as it is, at once."""

    def show(self, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    def end(self) -> None:
        self.show("\n")


class WrappedView:
    """For any terminal: no word is broken, and nothing that a model writes steers the terminal."""

    def __init__(self) -> None:
        self._wrapper = Wrapper(columns)

    def show(self, piece: str) -> None:
        self._write(self._wrapper.push(harmless(piece)))

    def end(self) -> None:
        self._write(self._wrapper.finish() + "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def view_of(markdown: bool) -> View:
    """The view for this standard output. markdown: whether answers may be Markdown."""
    if not sys.stdout.isatty():
        return PlainView()
    if markdown and can_show_markdown():
        from edgellm.cli.screen.markdown import MarkdownView

        return MarkdownView()
    return WrappedView()


def can_show_markdown() -> bool:
    """Whether this terminal obeys escapes, and rich is installed."""
    return obeys_escapes() and importlib.util.find_spec("rich") is not None
