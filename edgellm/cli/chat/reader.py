'''Reading what a person types: line editing, history, pasted text, and messages of several lines in """.'''

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edgellm.cli.chat.history import History
from edgellm.cli.terminal import obeys_escapes, remark

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'

Message = tuple[str, bool]  # a text, and whether it stood between triple quotes: then it is never a command


@dataclass(frozen=True)
class Help:
    """What an editor can show of the chat.

    status:     the line below the message; asked for a width.
    complete:   what may stand in place of the last word of a line: (the rest that is typed already, a word, about it).
    """

    status: Callable[[int], str] = lambda width: ""
    complete: Callable[[str], list[tuple[str, str, str]]] = field(default=lambda line: [])


class Reader(Protocol):
    """Reads messages from a terminal."""

    def read(self, prefilled: str = "") -> Message:
        """The next message; `prefilled` stands there to be changed.

        Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C, UnicodeError for bytes that are no text.
        """


def reader_of(history: History, about: Help) -> Reader:
    """An editor where the terminal can show one and prompt_toolkit is installed, otherwise line after line."""
    if sys.stdin.isatty() and obeys_escapes() and importlib.util.find_spec("prompt_toolkit"):
        from edgellm.cli.chat.editor import Editor

        return Editor(history, about)
    return LineReader(history)


def unquoted(block: str) -> Message:
    """A message without the quotes that frame it.

    Quotes frame a message only when nothing stands behind the closing ones; otherwise they are part of it, as in a
    pasted program that begins with a docstring. Nothing that was typed is left out.
    """
    if not block.lstrip().startswith(QUOTES):
        return block if block.strip() else "", False
    inner, _, behind = block.strip()[len(QUOTES) :].partition(QUOTES)
    if behind:
        return block, True
    return inner.removeprefix("\n").removesuffix("\n"), True


def is_open(block: str) -> bool:
    """Whether a message begins with quotes and has not closed them."""
    begun = block.lstrip()
    return begun.startswith(QUOTES) and QUOTES not in begun[len(QUOTES) :]


class LineReader:
    """Reads a line at a time, with readline where there is one; for simple terminals, and answers into a file."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._readline = _readline_with(history) if sys.stdout.isatty() else None

    def read(self, prefilled: str = "") -> Message:
        block = self._first_line(prefilled)
        while is_open(block):
            block += _read_more()
        self._history.add(block)
        return unquoted(block)

    def _first_line(self, prefilled: str) -> str:
        if prefilled and self._readline:
            self._readline.set_startup_hook(lambda: self._readline.insert_text(prefilled))
        try:
            return _read_line(PROMPT)
        finally:
            if self._readline:
                self._readline.set_startup_hook()


def _read_more() -> str:
    """A further line of a message between quotes, with the line end before it."""
    try:
        return "\n" + _read_line(MORE)
    except EOFError:
        remark('the input ended before the closing """; the message is sent as far as it came')
        return QUOTES
    except UnicodeError:
        remark("that line is not valid UTF-8 and is left out; the message goes on")
        return ""


def _read_line(prompt: str) -> str:
    if not sys.stdout.isatty():  # the answers go to a file: prompts must not
        sys.stderr.write(prompt)
        sys.stderr.flush()
        prompt = ""
    line = input(prompt)
    line.encode()  # in the C locale Python smuggles bytes that are no text through as surrogates
    return line


def _readline_with(history: History):  # type: ignore[no-untyped-def]  # a module, or None
    """Arrow keys, messages of earlier chats, and pasted lines as one message, where there is a readline."""
    if sys.platform == "win32":  # its console edits lines itself
        return None
    try:
        import readline
    except ImportError:
        return None
    readline.parse_and_bind("set enable-bracketed-paste on")
    for message in history.messages:
        with contextlib.suppress(ValueError):
            readline.add_history(message.replace("\0", ""))
    return readline
