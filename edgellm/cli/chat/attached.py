"""Files whose text goes with the next message."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edgellm.cli.conversation import read_file
from edgellm.cli.texts import decoded
from edgellm.errors import ContextOverflowError, UsageError

_FILES = re.compile(r"(?:--- ([^\n]+) ---\n.*?\n--- end of \1 ---\n\n)*", re.DOTALL)
_MOST_BYTES = 16 << 20  # far more than a context holds


class Attached:
    """The files that were read since the last message."""

    def __init__(self, n_ctx: int, count: Callable[[str], int]) -> None:
        self._n_ctx, self._count = n_ctx, count
        self._texts: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def read(self, path: Path) -> int:
        """Add a file, and return how many tokens it has.

        Raises OSError, FileProblem for what is no text, UsageError for an empty file, ContextOverflowError for one
        that no message could hold.
        """
        text = decoded(read_file(path, _MOST_BYTES, "any text that could be answered"), path).strip("\n")
        if not text.strip():
            raise UsageError(f"{path} is empty")
        n_tokens = self._count(text)
        if n_tokens >= self._n_ctx:
            raise ContextOverflowError(f"{path} has {n_tokens} tokens, and the context holds {self._n_ctx}")
        self._texts[path.name] = text
        return n_tokens

    def before(self, message: str) -> str:
        """A message with the files in front of it."""
        texts = [f"--- {name} ---\n{text}\n--- end of {name} ---" for name, text in self._texts.items()]
        return "\n\n".join([*texts, message])

    def clear(self) -> None:
        self._texts.clear()


def files_before(message: str) -> str:
    """The files that stand in front of a message, as `Attached.before` puts them there."""
    match = _FILES.match(message)
    return match[0] if match else ""
