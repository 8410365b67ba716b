"""Endless text: what a text whose context is full goes on from.

The model reads no more than n_ctx tokens. Where a text may be longer, its first tokens stay, the oldest of the others
are left out, and the rest is read again at its new places. The first ones stay because models that were trained on
whole texts lay much of their attention on them, whatever they are: without these *attention sinks* they lose their
thread (StreamingLLM, Xiao et al., 2023). What is read again is computed anew rather than turned to its new place, so
it is what the model would make of a text that always was so short: that serves every kind of model, whatever it knows
of positions and whatever state it has, and half a context of prompt is soon read.

Of a chat, the oldest turns go, whole, while there are any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from edgellm.errors import TemplateError, UsageError
from edgellm.params import SamplingParams

SINKS = 4  # tokens that stay where nothing else is asked for, as the paper has it
LEAST_SHARE = 4  # a quarter of the context must be free to move

PromptWithin = Callable[[int], Sequence[int]]
"""The ids of a prompt of at most so many tokens, with the latest of what a longer one had; none if there is none."""


class Shift:
    """How one text is shortened.

    n_virtual:  tokens of an adapter, which come first and always stay.
    within:     a shorter prompt, where whole parts of it can be left out.

    Raises UsageError when so much shall stay that nothing could move, and for what shall stay where nothing moves.
    """

    def __init__(
        self, params: SamplingParams, n_prompt: int, n_ctx: int, n_virtual: int = 0, within: PromptWithin | None = None
    ) -> None:
        if params.when_full != "shift":
            raise UsageError(
                f"n_keep is {params.n_keep}, but when_full is not 'shift', so nothing is left out; drop n_keep too",
                parameter="n_keep",
            )
        self._n_ctx, self._n_prompt, self._n_virtual = n_ctx, n_prompt, n_virtual
        self._within = within if params.n_keep is None else None
        most = n_ctx - n_virtual - -(-n_ctx // LEAST_SHARE)
        n_keep = min(SINKS, max(0, most)) if params.n_keep is None else params.n_keep
        if n_keep == -1:
            n_keep = n_prompt - n_virtual
        n_keep = min(n_keep, n_prompt - n_virtual)
        if n_keep > max(0, most):
            whole = f" (all {n_keep} tokens of the prompt)" if params.n_keep == -1 else ""
            raise UsageError(
                f"n_keep is {params.n_keep}{whole}, but with when_full='shift' at most {max(0, most)} tokens of this "
                f"context of {n_ctx} can stay, so that others can go; ask for less, or use a larger n_ctx",
                parameter="n_keep",
            )
        self._n_first = n_virtual + n_keep

    def read_of(self, text: Sequence[int]) -> tuple[list[int], int]:
        """What of a text, its prompt included, is read on from; and how many of its last tokens that has at the end."""
        half = (self._n_ctx - self._n_virtual) // 2
        n_answer = len(text) - self._n_prompt
        if self._within is not None and (prompt := self._within(max(half - n_answer, half // 2))):
            n_last = min(n_answer, half - len(prompt))
            return [*text[: self._n_virtual], *prompt, *text[len(text) - n_last :]], n_last
        n_last = max(1, (self._n_ctx - self._n_first) // 2)
        n_last = min(n_last, len(text) - self._n_first)
        return [*text[: self._n_first], *text[len(text) - n_last :]], n_last


def latest_turns(messages: Sequence[Any], ids_of: Callable[[list[Any]], Sequence[int]]) -> PromptWithin:
    """Prompts of a chat without its oldest turns; what stands before the first question, the system text, stays.

    A template that refuses what is left gives none.
    """
    begins = [index for index, message in enumerate(messages) if message.get("role") == "user"]

    def without_oldest(n: int) -> Sequence[int]:
        return ids_of([*messages[: begins[0]], *messages[begins[n] :]])

    def within(room: int) -> Sequence[int]:
        try:
            n = bisect_left(range(len(begins)), True, key=lambda n: len(without_oldest(n)) <= room)
            return without_oldest(n) if n < len(begins) else ()
        except TemplateError:
            return ()

    return within
