"""A conversation: its turns, saving and loading it, and making room when it outgrows the context."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from edgellm.errors import ContextOverflowError, FileProblem, FormatError
from edgellm.files import atomic_write

Message = dict[str, str]

_FILE_LIMIT = 16 << 20  # bytes; far more than any context holds
_ANSWER_SHARE = 4  # keep a quarter of the context free for the answer


class Turn(NamedTuple):
    """What the user said and what the model answered; None while there is no answer."""

    user: str
    answer: str | None = None


class Conversation(NamedTuple):
    """A system text and turns; every method gives a new one, so that nothing is lost on the way."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()

    def with_user(self, text: str) -> Conversation:
        return Conversation(self.system, (*self.turns, Turn(text)))

    def with_answer(self, text: str) -> Conversation:
        return Conversation(self.system, (*self.turns[:-1], Turn(self.turns[-1].user, text)))

    def with_system(self, text: str | None) -> Conversation:
        return Conversation(text, self.turns)

    def without_last_answer(self) -> Conversation:
        return Conversation(self.system, (*self.turns[:-1], Turn(self.turns[-1].user)))

    def without_last(self) -> Conversation:
        return Conversation(self.system, self.turns[:-1])

    def without_oldest(self, n_turns: int) -> Conversation:
        return Conversation(self.system, self.turns[n_turns:])

    def messages(self) -> list[Message]:
        """The conversation as chat templates want it."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.user})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def fitted(self, n_ctx: int, count: Callable[[list[Message]], int], advice: str = "shorten it") -> Conversation:
        """Without the oldest turns that leave too little room for an answer.

        n_ctx: tokens of the context; count(messages): tokens of a prompt. Raises ContextOverflowError, with an
        advice, when the last turn alone does not fit.
        """
        room = n_ctx - n_ctx // _ANSWER_SHARE
        fewest, most = 0, len(self.turns) - 1  # turns to drop; halved, for a conversation may have many thousands
        if most > 0 and count(self.messages()) <= room:
            return self
        while fewest < most:
            middle = (fewest + most) // 2
            if count(self.without_oldest(middle).messages()) <= room:
                most = middle
            else:
                fewest = middle + 1
        shorter = self.without_oldest(most)
        n_tokens = count(shorter.messages())
        if n_tokens < n_ctx:
            return shorter
        raise ContextOverflowError(
            f"this message alone makes {n_tokens} tokens, the context holds {n_ctx}; it is not sent and the "
            f"conversation is unchanged; {advice}"
        )

    def as_json(self, model: str | None = None) -> bytes:
        """What `parse` reads: {"model": ..., "messages": [{"role", "content"}, ...]}."""
        about = {"model": model} if model else {}
        text = json.dumps({**about, "messages": self.messages()}, ensure_ascii=False, indent=2)
        return f"{text}\n".encode()

    def save(self, path: Path) -> None:
        """Write the conversation as JSON: {"messages": [{"role", "content"}, ...]}."""
        with atomic_write(path) as file:
            file.write(self.as_json())

    @staticmethod
    def load(path: Path) -> Conversation:
        """Read what `save` wrote; FormatError for anything else, OSError for a file that cannot be read."""
        return Conversation.parse(read_file(path, _FILE_LIMIT, "any conversation"), path)[0]

    @staticmethod
    def parse(data: bytes, path: Path) -> tuple[Conversation, str | None]:
        """A conversation, and the model that it was held with if it says so. FormatError for anything else."""
        try:
            found = json.loads(data, object_pairs_hook=_without_doubles)
            model = found.get("model")
            if set(found) - {"messages", "model"} or not isinstance(model, (str, type(None))):
                raise ValueError(model)
            return _from_messages(found["messages"]), model
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(
                f'{path}: not a saved conversation; expected {{"messages": [{{"role", "content"}}, ...]}}, '
                "a system message first if any, then user and assistant in turn"
            ) from None


def read_file(path: Path, most: int, what: str) -> bytes:
    """A regular file of at most so many bytes, read once. Raises FileProblem for others: a pipe could keep us waiting.

    what:  that is smaller, for the error.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileProblem(f"{path} is a folder, pipe or device; expected a file")
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise FormatError(f"{path}: larger than {what} ({most >> 20} MiB)")
    return data


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a name that stands in it twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(pairs)
    return found


def _from_messages(messages: list[dict[str, Any]]) -> Conversation:
    system: str | None = None
    turns: list[Turn] = []
    for position, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if not isinstance(content, str) or len(message) > 2:  # a key that would be lost
            raise TypeError(content)
        content.encode()  # half of a pair of surrogates is no text
        answered = not turns or turns[-1].answer is not None
        if role == "system" and position == 0:
            system = content
        elif role == "user" and answered:
            turns.append(Turn(content))
        elif role == "assistant" and not answered:
            turns[-1] = Turn(turns[-1].user, content)
        else:
            raise ValueError(role)
    return Conversation(system, tuple(turns))
