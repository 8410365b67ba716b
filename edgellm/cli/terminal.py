"""Text for terminals: what strangers wrote is shown, never obeyed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

from edgellm.cli.wrapping import wrapped
from edgellm.errors import counted, size_text

__all__ = [
    "columns",
    "counted",
    "harmless",
    "note",
    "obeys_escapes",
    "one_line",
    "quiet_keyboard",
    "remark",
    "show_answer",
    "size_text",
    "tell",
]

_LEAST_COLUMNS = 20  # of a terminal that says it has none, or hardly any

# C0 and C1 control characters and DEL start terminal escapes. Only line feed and tab are shown as they are: a
# carriage return would let later text overwrite earlier text.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def harmless(text: str) -> str:
    """Text of several lines without control characters: a model or file cannot steer the terminal."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """Text as a single line in which everything unprintable is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns() -> int:
    """How wide the terminal is now. It is asked itself, for COLUMNS may be of before its size was changed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream.isatty() and (width := os.get_terminal_size(stream.fileno()).columns):
                return max(width, _LEAST_COLUMNS)
    return max(shutil.get_terminal_size().columns, _LEAST_COLUMNS)


def obeys_escapes() -> bool:
    """Whether standard output is a terminal that moves its cursor when it is told to."""
    if not sys.stdout.isatty():
        return False
    return sys.platform == "win32" or os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def with_standard_streams() -> None:
    """Put an empty file where a standard stream is closed, which takes its number before another file can.

    Otherwise what is meant for people would be written into that file, or what is meant for standard error to output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest number first
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open to the end


def note(text: str) -> None:
    """Tell a person something that is not the answer: one line on standard error."""
    print(f"edgellm: {one_line(text)}", file=sys.stderr, flush=True)


def remark(text: str) -> None:
    """The same in a chat, where the line is broken between words if the terminal is too narrow."""
    tell(f"edgellm: {one_line(text)}")


def tell(text: str) -> None:
    """Lines that are not an answer, on standard error; between words where a terminal is too narrow."""
    text = harmless(text)
    print(wrapped(text, columns()) if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Inside, what is typed is not shown, but waits for the next prompt: it would stand in the midst of an answer.

    Ctrl-C and the like work as ever.
    """
    if sys.platform == "win32" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield
        return
    import termios

    handle = sys.stdin.fileno()
    usual = termios.tcgetattr(handle)
    silent = list(usual)
    silent[3] = (silent[3] & ~termios.ECHO) | termios.NOFLSH  # and Ctrl-C does not throw away what is typed
    termios.tcsetattr(handle, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, usual)


@contextlib.contextmanager
def asking_keyboard() -> Iterator[None]:
    """For a question in the midst of an answer: what is typed is shown. What was typed before is no answer to it, and
    is thrown away.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    shown = list(before)
    shown[3] |= termios.ECHO
    termios.tcsetattr(handle, termios.TCSAFLUSH, shown)
    try:
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def show_answer(text: str) -> None:
    """Write a piece of an answer to standard output at once."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
