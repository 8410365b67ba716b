"""The session of `edgellm run --session`: a conversation in a file, with what the cache had of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.conversation import Conversation
from edgellm.cli.terminal import note
from edgellm.errors import FormatError
from edgellm.files import refuse_target

if TYPE_CHECKING:
    from edgellm.engine import Generation, Model


class SessionFile:
    """A file that may not be there yet. Raises UsageError for a path that no file can have."""

    def __init__(self, path: str) -> None:
        self.path = Path(os.path.expanduser(path))
        refuse_target(self.path)

    def load(self, model: Model) -> Conversation:
        """The conversation so far, whose keys and values then are in the cache. Raises FileProblem for another file."""
        if not self.path.exists():
            return Conversation()
        session = model.load_session(self.path)
        note(f"{self.path}: {len(session.token_ids)} tokens need not be computed again")
        if not session.note:
            return Conversation()
        try:
            return Conversation.parse(session.note.encode(), self.path)[0]
        except FormatError:
            raise FormatError(f"{self.path}: the session holds no conversation that edgellm has saved") from None

    def save(self, model: Model, conversation: Conversation, last: Generation | None = None) -> None:
        """Write the conversation and what the cache has of it. last: the answer that ends it, where it is at hand."""
        if last is None and model.chat_template is not None and conversation.turns:
            text = model.chat_template.render(conversation.messages(), add_generation_prompt=False)
            ids = model.tokenize(text, parse_special=True)[: model.n_text]
            model.save_session(self.path, ids, note=conversation.as_json().decode())
        elif last is not None:
            model.save_session(self.path, last, note=conversation.as_json().decode() if conversation.turns else "")
