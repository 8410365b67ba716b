"""What of a conversation the model reads when the context does not hold all of it.

    stop    nothing is forgotten: a message that does not fit is not sent
    drop    the oldest turns are left out, whole, so that a quarter of the context is free for the answer
    shift   the same, and an answer that reaches the end of the context goes on, see `edgellm.engine.shifting`

The conversation itself keeps all its turns.
"""

from __future__ import annotations

from collections.abc import Callable

from edgellm.cli.conversation import Conversation, Message
from edgellm.errors import ContextOverflowError

WAYS = {
    "stop": "then stops",
    "drop": "then drops the oldest turns",
    "shift": "then drops the oldest, also while answering",
}
DEFAULT_WAY = "drop"
FREE_SHARE = 4  # a quarter of the context is kept free for the answer


class Window:
    """Which turns are read: all from the `first` on, which never goes back, so that the cache stays of use."""

    def __init__(self, n_ctx: int, count: Callable[[list[Message]], int], advice: str) -> None:
        self._n_ctx, self._count, self._advice = n_ctx, count, advice
        self.first = 0

    def begin_anew(self) -> None:
        self.first = 0

    def read_of(self, asked: Conversation, way: str) -> Conversation:
        """What is read to answer the last message. Raises ContextOverflowError when it cannot be answered."""
        first = min(self.first, len(asked.turns) - 1)
        if way == "stop":
            n_tokens = self._count(asked.without_oldest(first).messages())
            if n_tokens >= self._n_ctx:
                raise ContextOverflowError(
                    f"with this message the conversation makes {n_tokens} tokens, and the context holds {self._n_ctx}; "
                    "it is not sent: /clear begins anew, /set when_full drop leaves out the oldest turns"
                )
        else:
            fitted = asked.without_oldest(first).fitted(self._n_ctx, self._count, self._advice)
            first = len(asked.turns) - len(fitted.turns)
        self.first = first
        return asked.without_oldest(first)
