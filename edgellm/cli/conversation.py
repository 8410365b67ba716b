"""A conversation: its turns, saving and loading it, and making room when it outgrows the context."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import ContextOverflowError, FormatError
from edgellm.files import atomic_write

Message = dict[str, str]

_FILE_LIMIT = 64 << 20  # bytes; far more than any context holds
_ANSWER_SHARE = 4  # keep a quarter of the context free for the answer


@dataclass(frozen=True)
class Turn:
    """What the user said and what the model answered; None while there is no answer."""

    user: str
    answer: str | None = None


@dataclass(frozen=True)
class Conversation:
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
        for n_dropped in range(len(self.turns)):
            shorter = self.without_oldest(n_dropped)
            n_tokens = count(shorter.messages())
            if n_tokens <= room:
                return shorter
        if n_tokens < n_ctx:
            return shorter
        raise ContextOverflowError(
            f"this message alone makes {n_tokens} tokens, the context holds {n_ctx}; it is not sent and the "
            f"conversation is unchanged; {advice}"
        )

    def save(self, path: Path) -> None:
        """Write the conversation as JSON: {"messages": [{"role", "content"}, ...]}."""
        text = json.dumps({"messages": self.messages()}, ensure_ascii=False, indent=2)
        with atomic_write(path) as file:
            file.write(f"{text}\n".encode())

    @staticmethod
    def load(path: Path) -> Conversation:
        """Read what `save` wrote; FormatError for anything else, OSError for a file that cannot be read."""
        with open(path, "rb") as file:
            data = file.read(_FILE_LIMIT + 1)
        if len(data) > _FILE_LIMIT:
            raise FormatError(f"{path}: larger than any conversation ({_FILE_LIMIT >> 20} MiB)")
        try:
            messages = json.loads(data)["messages"]
            return _from_messages(messages)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise FormatError(
                f'{path}: not a saved conversation; expected {{"messages": [{{"role", "content"}}, ...]}}, '
                "a system message first if any, then user and assistant in turn"
            ) from None


def _from_messages(messages: list[dict[str, Any]]) -> Conversation:
    conversation = Conversation()
    for position, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if not isinstance(content, str) or len(message) > 2:  # a key that would be lost
            raise TypeError(content)
        answered = not conversation.turns or conversation.turns[-1].answer is not None
        if role == "system" and position == 0:
            conversation = conversation.with_system(content)
        elif role == "user" and answered:
            conversation = conversation.with_user(content)
        elif role == "assistant" and not answered:
            conversation = conversation.with_answer(content)
        else:
            raise ValueError(role)
    return conversation
