"""The session of `edgellm run --session`: a conversation in a file, with what the cache had of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.conversation import Conversation
from edgellm.cli.terminal import note
from edgellm.errors import FormatError, UsageError, counted
from edgellm.files import refuse_target
from edgellm.files.locking import alone_at

if TYPE_CHECKING:
    from edgellm.engine import Generation, Model


class SessionFile:
    """A file that may not be there yet. Raises UsageError for a path that no file can have."""

    def __init__(self, path: str) -> None:
        self.path = Path(os.path.expanduser(path))
        refuse_target(self.path)
        self._version = version_of(self.path)

    def load(self, model: Model) -> Conversation:
        """The conversation so far, whose keys and values then are in the cache. Raises FileProblem for another file."""
        self._version = version_of(self.path)
        if not self.path.exists():
            return Conversation()
        session = model.load_session(self.path)
        if not session.note:
            raise UsageError(f"{self.path} holds a text and no conversation, and keeping one there would overwrite it; "
                             "name another file, or go on with the text from Python (Model.load_session)")  # fmt: skip
        try:
            found = Conversation.parse(session.note.encode(), self.path)[0]
        except FormatError:
            raise FormatError(f"{self.path}: the session holds no conversation that edgellm has saved") from None
        # What a template writes otherwise now, such as thoughts of earlier turns, is computed again all the same.
        n_tokens = counted(len(session.token_ids), "token")
        note(f"{self.path}: {counted(len(found.turns), 'turn')}, and keys and values of {n_tokens}")
        return found

    def save(self, model: Model, conversation: Conversation, last: Generation | None = None) -> None:
        """Write the conversation and what the cache has of it. last: the answer that ends it, where it is at hand.

        What another process has written there meanwhile stays: the file then is one of another name.
        """
        with _alone_at(self.path):
            self._save(model, conversation, last)

    def _save(self, model: Model, conversation: Conversation, last: Generation | None) -> None:
        if version_of(self.path) not in (self._version, None):
            other = free_name(self.path)
            note(f"{self.path}: another edgellm run has changed it meanwhile; this conversation is kept as {other}")
            self.path = other
        if last is None and model.chat_template is not None and conversation.turns:
            text = model.chat_template.render(conversation.messages(), add_generation_prompt=False)
            ids = model.tokenize(text, parse_special=True)[: model.n_text]
            model.save_session(self.path, ids, note=conversation.as_json().decode())
        elif last is not None:
            model.save_session(self.path, last, note=conversation.as_json().decode() if conversation.turns else "")
        self._version = version_of(self.path)


@contextlib.contextmanager
def _alone_at(path: Path) -> Iterator[None]:
    """While no other edgellm looks whether a session has changed, and writes it. Where no lock can be, without one."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(alone_at(path, lambda: note(f"another edgellm saves {path}; waiting")))
        yield


def version_of(path: Path) -> tuple[int, ...] | None:
    """What differs when a file is written anew; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def free_name(path: Path) -> Path:
    """`talk-2.session` for `talk.session`, or the first such name that no file has."""
    names = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in count(2))
    return next(name for name in names if not name.exists())
