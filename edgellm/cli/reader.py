'''Reading what a person types: line editing, history, pasted text, and messages of several lines in """.'''

from __future__ import annotations

import atexit
import contextlib
import sys

from edgellm.cli.terminal import note
from edgellm.files import home, private

_QUOTES = '"""'
_HISTORY_LINES = 1000


class LineReader:
    """Reads messages from a terminal."""

    def __init__(self) -> None:
        if sys.stdout.isatty():
            _set_up_editing()

    def read(self) -> tuple[str, bool]:
        """The next message, and whether it stood between triple quotes: then it is never a command.

        Quotes frame a message only when nothing stands behind the closing ones; otherwise they are part of it, as in
        a pasted program that begins with a docstring. Nothing that was typed is left out.
        Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C, UnicodeError for bytes that are no text.
        """
        block = _read_line(">>> ")
        if not block.lstrip().startswith(_QUOTES):
            return block if block.strip() else "", False
        while _QUOTES not in block.lstrip()[len(_QUOTES) :]:
            block += _read_more()
        inner, _, behind = block.strip()[len(_QUOTES) :].partition(_QUOTES)
        if behind:
            return block, True
        return inner.removeprefix("\n").removesuffix("\n"), True


def _read_more() -> str:
    """A further line of a message between quotes, with the line end before it."""
    try:
        return "\n" + _read_line("... ")
    except EOFError:
        note('the input ended before the closing """; the message is sent as far as it came')
        return _QUOTES
    except UnicodeError:
        note("that line is not valid UTF-8 and is left out; the message goes on")
        return ""


def _read_line(prompt: str) -> str:
    if not sys.stdout.isatty():  # the answers go to a file: prompts must not
        sys.stderr.write(prompt)
        sys.stderr.flush()
        prompt = ""
    line = input(prompt)
    line.encode()  # in the C locale Python smuggles bytes that are no text through as surrogates
    return line


def _set_up_editing() -> None:
    """Arrow keys, history across sessions, and pasted lines as one message, where there is a readline."""
    if sys.platform == "win32":  # its console edits lines itself
        return
    try:
        import readline
    except ImportError:
        return
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.set_history_length(_HISTORY_LINES)
    history = home() / "chat_history"
    if not private.is_ours_or_nothing(history):
        note(f"{history} is not a file of yours, so what you type is not remembered")
        return
    with contextlib.suppress(OSError):
        home().mkdir(parents=True, exist_ok=True)
        readline.read_history_file(history)

    def keep() -> None:
        with contextlib.suppress(OSError):
            readline.write_history_file(history)

    atexit.register(keep)
