"""What a model thinks, beside its answer."""

from __future__ import annotations

import os
import sys

from edgellm.cli.terminal import columns, harmless
from edgellm.cli.wrapping import Wrapper

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class ThoughtView:
    """Shows thoughts on standard error: dim, with no word broken, and nothing in them steers the terminal."""

    def __init__(self) -> None:
        self._wrapper = Wrapper(columns)
        self._is_dim = "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")

    def show(self, piece: str) -> None:
        self._write(self._wrapper.push(harmless(piece)))

    def end(self) -> None:
        """A thought is over, and so is its last line."""
        self._write(self._wrapper.finish() + "\n")

    def _write(self, text: str) -> None:
        if text:
            sys.stderr.write(f"{_DIM}{text}{_PLAIN}" if self._is_dim else text)
            sys.stderr.flush()
