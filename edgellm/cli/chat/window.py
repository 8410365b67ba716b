"""What of a conversation the model reads when the context does not hold all of it.

    stop    nothing is forgotten: a message that does not fit is not sent
    drop    the oldest turns are left out, whole, so that a quarter of the context is free for the answer
    shift   the same, and an answer that reaches the end of the context goes on: the oldest of what is read, then of
            the answer itself, is left out, and the rest is read again

The conversation itself keeps all its turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edgellm.cli.conversation import Conversation, Message
from edgellm.errors import ContextOverflowError

if TYPE_CHECKING:
    from edgellm.engine import Generation, GenerationStats

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


class Shifted:
    """An answer that goes on when the context is full. It is used as a `Generation` is.

    go_on(token ids of the answer so far):  a generation that goes on with the text, of which less is read; None when
                                            nothing more can be left out.
    n_shifts:                               how often that was needed.
    """

    def __init__(self, first: Generation, go_on: Callable[[list[int]], Generation | None]) -> None:
        self._now = first
        self._go_on = go_on
        self._is_cancelled = False
        self._before: list[GenerationStats] = []
        self._ids: list[int] = []
        self.n_shifts = 0

    @property
    def finish_reason(self) -> str | None:
        return self._now.finish_reason

    @property
    def n_prompt_done(self) -> int:
        return self._now.n_prompt_done

    @property
    def stats(self) -> GenerationStats:
        """Of the first prompt, and of all that was generated."""
        if not self._before:
            return self._now.stats
        all_parts = [*self._before, self._now.stats]
        return dataclasses.replace(
            self._before[0],
            n_generated_tokens=sum(stats.n_generated_tokens for stats in all_parts),
            n_draft_tokens=sum(stats.n_draft_tokens for stats in all_parts),
            n_accepted_tokens=sum(stats.n_accepted_tokens for stats in all_parts),
            generate_seconds=sum(stats.generate_seconds for stats in all_parts),
        )

    @property
    def n_in_context(self) -> int:
        """Tokens that the context holds now."""
        return self._now.stats.n_prompt_tokens + self._now.stats.n_generated_tokens

    def __iter__(self) -> Iterator[str]:
        while True:
            yield from self._now
            if self._now.finish_reason != "context" or self._is_cancelled:
                return
            self._ids += self._now.token_ids
            after = self._go_on(self._ids)
            if after is None:
                return
            self._before.append(self._now.stats)
            self.n_shifts += 1
            self._now = after
            if self._is_cancelled:
                self._now.cancel()

    def cancel(self) -> None:
        self._is_cancelled = True
        self._now.cancel()
