"""What was typed in chats before, one message a line in a file of the user's own.

The lines of one message are kept apart by the line separator of Unicode. Messages are added as they are typed, so that
none is lost however the chat ends.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from edgellm.cli.terminal import remark
from edgellm.files import home, private
from edgellm.files.unfinished import SAFELY, unfinished

MOST_MESSAGES = 1000
_MOST_BYTES = 4 << 20  # a file beyond that is cut to the last messages
_LINE_SEPARATOR = "\u2028"


class History:
    """The messages of all chats, the oldest first. One that is not `kept` is of this chat alone."""

    def __init__(self, kept: bool = True) -> None:
        self._path = home() / "chat_history" if kept else None
        if self._path and not private.is_ours_or_nothing(self._path):
            remark(f"{self._path} is not a file of yours, so what you type is not remembered")
            self._path = None
        self.messages = self._read(self._path) if self._path else []

    def add(self, message: str) -> None:
        """Remember a message, unless it is the last one again."""
        if not message.strip() or self.messages[-1:] == [message]:
            return
        self.messages.append(message)
        if self._path:
            with contextlib.suppress(OSError, UnicodeError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | SAFELY, 0o600)
                with open(handle, "ab") as file:
                    file.write(f"{_in_a_line(message)}\n".encode())

    @staticmethod
    def _read(path: Path) -> list[str]:
        try:
            handle = os.open(path, os.O_RDONLY | SAFELY)
            with open(handle, "rb") as file:
                file.seek(max(0, os.fstat(handle).st_size - _MOST_BYTES))
                lines = file.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return []
        messages = [line.replace(_LINE_SEPARATOR, "\n") for line in lines if line.strip()]
        if len(messages) > 2 * MOST_MESSAGES:
            messages = messages[-MOST_MESSAGES:]
            with contextlib.suppress(OSError), unfinished(path, permissions=0o600, to_disk=False) as whole:
                whole.write("".join(f"{_in_a_line(message)}\n" for message in messages).encode())
        return messages[-MOST_MESSAGES:]


def _in_a_line(message: str) -> str:
    return message.replace("\n", _LINE_SEPARATOR)
