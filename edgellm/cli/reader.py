'''Reading what a person types: line editing, history, pasted text, and messages of several lines in """.'''

from __future__ import annotations

import atexit
import contextlib
import sys

from edgellm.files import home

_QUOTES = '"""'
_HISTORY_LINES = 1000


class LineReader:
    """Reads messages from a terminal."""

    def __init__(self) -> None:
        if sys.stdout.isatty():
            _set_up_editing()

    def read(self) -> tuple[str, bool]:
        """The next message, and whether it stood between triple quotes: then it is never a command.

        Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C, UnicodeError for bytes that are no text.
        """
        line = _read_line(">>> ")
        if not line.lstrip().startswith(_QUOTES):
            return line.strip(), False
        text = line.lstrip()[len(_QUOTES) :]
        while _QUOTES not in text:
            text += "\n" + _read_line("... ")
        return text.partition(_QUOTES)[0].strip("\n"), True


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
    with contextlib.suppress(OSError):
        home().mkdir(parents=True, exist_ok=True)
        readline.read_history_file(history)

    def keep() -> None:
        with contextlib.suppress(OSError):
            readline.write_history_file(history)

    atexit.register(keep)
