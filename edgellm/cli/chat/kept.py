"""Conversations that are kept as they happen, one file each, which nobody but the user can read.

A file is written when a message is sent, while it is answered, and after the answer; always whole, in place of the one
before. One that another chat has changed meanwhile is left to it, and this chat goes on in a new one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from edgellm.cli.conversation import Conversation
from edgellm.cli.terminal import remark
from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.files import conversations_folder, private
from edgellm.files.unfinished import unfinished

_WHILE_ANSWERING = 3.0  # seconds between two files
_SHOWN = 60  # characters of a conversation's first message in a list


class Keeper:
    """Keeps one conversation after the other."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._path: Path | None = None
        self._written: tuple[int, int, int] | None = None  # what the file is known by
        self._next = 0.0
        self._has_failed = False

    def begin_anew(self) -> None:
        """What comes is another conversation."""
        self._path = self._written = None

    def go_on_with(self, path: Path) -> None:
        """What comes belongs to a conversation that is kept already."""
        self._path, self._written = path, _known_by(path)

    @property
    def has_file(self) -> bool:
        return self._path is not None

    def is_due(self) -> bool:
        """Whether an answer that is being made should be written again."""
        return time.monotonic() >= self._next

    def keep(self, conversation: Conversation) -> None:
        """Write the conversation. Where it cannot be written, that is said once, and the chat goes on."""
        try:
            self._write(conversation)
            self._has_failed = False
        except OSError as problem:
            if not self._has_failed:
                remark(
                    f"this conversation cannot be kept: {problem.filename or ''}: {problem.strerror}; /save FILE can"
                )
            self._has_failed = True
        self._next = time.monotonic() + _WHILE_ANSWERING

    def _write(self, conversation: Conversation) -> None:
        if self._path and _known_by(self._path) != self._written:
            remark(f"{self._path.name} was changed by another chat; this one goes on in a file of its own")
            self._path = None
        if self._path is None:
            private.make(conversations_folder())
            name = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(2)}.json"
            self._path = conversations_folder() / name
        with unfinished(self._path, permissions=0o600) as file:
            file.write(conversation.as_json(self._model))
        self._written = _known_by(self._path)


@dataclass(frozen=True)
class Kept:
    """A conversation that was kept. model: what it was held with, as it was called then; None if that is not known."""

    path: Path
    conversation: Conversation
    model: str | None

    def line(self) -> str:
        """When it was, and how it began."""
        first = " ".join(self.conversation.turns[0].user.split()) if self.conversation.turns else "(empty)"
        first = first if len(first) <= _SHOWN else f"{first[: _SHOWN - 1]}…"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.path.stat().st_mtime))
        turns = len(self.conversation.turns)
        return f"{when}, {turns} turn{'s' * (turns != 1)}: {first}"


def latest() -> Kept:
    """The conversation that was kept last. Raises UsageError where there is none, FileProblem for a damaged one."""
    paths = kept_paths()
    if not paths:
        raise UsageError(f"there is no conversation to resume in {conversations_folder()}")
    return read(paths[0])


def recent(n: int) -> list[Kept]:
    """The last few that can be read, the newest first."""
    found = []
    for path in kept_paths():
        with contextlib.suppress(FileProblem, OSError):
            found.append(read(path))
        if len(found) == n:
            break
    return found


def kept_paths() -> list[Path]:
    """The files of all conversations, the newest first."""
    times = {}
    with contextlib.suppress(OSError):
        for path in conversations_folder().glob("*.json"):
            with contextlib.suppress(OSError):
                times[path] = path.stat().st_mtime_ns
    return sorted(times, key=lambda path: (times[path], path.name), reverse=True)


def read(path: Path) -> Kept:
    """Raises FileProblem for a file that others can have written, FormatError for one that holds no conversation."""
    data = private.read(path)
    if data is None:
        raise FileProblem(
            f"{path} is not a file that only you can write, so it is not resumed; /load reads it, if you trust it"
        )
    conversation, model = Conversation.parse(data, path)
    if not conversation.turns:
        raise FormatError(f"{path}: the conversation has no messages yet")
    return Kept(path, conversation, model)


def _known_by(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
