"""Text for terminals: what strangers wrote is shown, never obeyed."""

from __future__ import annotations

import os
import sys

from edgellm.errors import size_text

__all__ = ["harmless", "note", "one_line", "show_answer", "size_text"]

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


def show_answer(text: str) -> None:
    """Write a piece of an answer to standard output at once."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
