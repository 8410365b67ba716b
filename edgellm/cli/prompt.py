"""The prompt of `edgellm run`: from -p, from standard input, or from both."""

from __future__ import annotations

import select
import sys

from edgellm.cli.terminal import note
from edgellm.errors import FileProblem, UsageError

_QUIET_SECONDS = 2.0


def will_chat(given: str | None) -> bool:
    """Whether a person sits at a terminal and wants to talk."""
    return given is None and sys.stdin.isatty()


def read_prompt(given: str | None, may_be_empty: bool = False) -> str:
    """The text to answer, where nobody wants to talk.

    Text that is piped in is the prompt, or follows the text of -p after an empty line. Raises UsageError for
    an empty prompt unless it `may_be_empty`, FileProblem for bytes that are not UTF-8.
    """
    if given is not None:
        try:
            given.encode()
        except UnicodeEncodeError:
            raise UsageError("the text of -p is not valid UTF-8") from None
    piped = "" if sys.stdin.isatty() and given != "-" else _read_stdin()
    text = piped if given in (None, "-") else f"{given}\n\n{piped}" if piped else given
    if not text and not may_be_empty:
        raise UsageError("there is nothing to answer: give -p TEXT, or text on standard input")
    return text


def _read_stdin() -> str:
    _say_when_waiting()
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        found = data[error.start]
        raise FileProblem(f"standard input is not valid UTF-8: byte 0x{found:02x} at offset {error.start}") from None


def _say_when_waiting() -> None:
    """A pipe that nobody writes to looks like a hang; say what is being waited for."""
    if sys.platform != "win32" and not sys.stdin.isatty():
        ready, _, _ = select.select([sys.stdin.buffer], [], [], _QUIET_SECONDS)
        if not ready:
            note("waiting for the end of standard input (< /dev/null goes without)")
