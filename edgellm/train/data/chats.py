"""A chat as tokens, and which of them are answers: told by comparing what its template renders.

For each answer the template renders the messages before it, as the prompt that the model would be given, and the same
messages with the answer. What the second has beyond the first is what the model would have to say. Of that, all counts
up to the first token at which generation stops. No template needs to be marked, changed or known for it.

Where a later prompt goes on from an earlier one, token by token, both answers are learnt in one document. Templates
that rewrite what was said, such as those that leave out the thoughts of earlier answers, make several documents:
each answer is learnt behind the very prompt that the model would see.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgellm.errors import TemplateError
from edgellm.text import ChatTemplate, Tokenizer
from edgellm.text.calls.plain import told_in_text
from edgellm.text.common import n_common
from edgellm.text.messages import REASONING, holds_calls, plain_messages
from edgellm.text.provenance import Text, cut, own_of
from edgellm.train.data.examples import Chat
from edgellm.train.documents import Documents

ANSWERS = ("assistant", "model")  # roles of what the model says
MEANT = ("role", "content", "weight", "tool_calls", "tool_call_id", "name")  # keys of messages that are no mistake
PROBE = "\ue000"  # an answer that begins like no other
OTHER_PROMPT = "the template's prompt for an answer is not how the answers begin that it renders"
NO_END = "the template ends answers with no token at which generation stops, so the model does not learn to stop"
NO_PROMPT = "an answer with nothing before it cannot be told apart, and is not learnt"
DATED = "the template can write today's date, so other days make other tokens, unless template_variables set it"
TOLD_IN_TEXT = "the template knows no tools, so tools and calls are written as texts, as they are when the model runs"
IN_PARTS = "later prompts do not go on from earlier answers token by token, so each is learnt in a document of its own"


class ChatEncoder:
    """Turns chats into documents, with one model's template and tokenizer.

    notes:  what a person should know, with the number of chats that it is true of.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, variables: Mapping[str, Any] | None = None):
        self._template = template
        self._tokenizer = tokenizer
        self._variables = dict(variables or {})
        self.notes: Counter[str] = Counter()

    def answers(self, chat: Chat, only_last: bool = False) -> list[Documents]:
        """Documents in which the answers are learnt, all that are not given or only the last.

        Each ends with the last token that is learnt. A message of weight 0 is no answer.
        Raises TemplateError for a chat that the template refuses, or that cannot be split.
        """
        turns = [n for n, message in enumerate(chat.messages) if n >= chat.n_given and _is_answer(message)]
        chat = replace(chat, messages=[_without_weight(message) for message in chat.messages])
        found: list[tuple[list[int], list[bool]]] = []
        notes = {DATED} if "strftime_now" in self._template.source else set()
        if self._tells_in_text(chat):
            notes.add(TOLD_IN_TEXT)
        for n in turns[-1:] if only_last else turns:
            ids, start = self._turn(chat, n, notes)
            end = self._end(ids, start, notes)
            if start == end:
                continue
            trained = [False] * start + [True] * (end - start)
            if found:
                earlier, learnt = found[-1]
                if earlier == ids[: len(earlier)] and len(earlier) <= start:
                    trained[: len(learnt)] = learnt
                    found.pop()
                else:
                    notes.add(IN_PARTS)
            found.append((ids[:end], trained))
        self.notes.update(sorted(notes))
        return [Documents.of(ids, trained) for ids, trained in found]

    def whole(self, chat: Chat) -> list[Documents]:
        """One document in which every token is learnt."""
        ids = self._encode(self._render(chat, list(map(_without_weight, chat.messages)), False))
        return [Documents.of(ids, [True] * len(ids))] if ids else []

    def prompt(self, chat: Chat) -> list[int]:
        """The tokens behind which the model would answer a chat."""
        return self._encode(self._render(chat, chat.messages, True))

    def unused_keys(self, messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Keys of messages that neither training nor the template looks at: the template does not name them."""
        keys = {key: None for message in messages for key, value in message.items() if value is not None}
        return [key for key in keys if key not in MEANT and not self._is_named(key)]

    def _is_named(self, key: str) -> bool:
        names = REASONING if key in REASONING else (key,)  # a thought stands under each of its names
        source = "\n".join(self._template.sources)
        return any(re.search(rf"\b{re.escape(name)}\b", source) for name in names)

    def _turn(self, chat: Chat, n: int, notes: set[str]) -> tuple[list[int], int]:
        """The tokens of the chat up to and with message n, and where that begins."""
        before, upto = chat.messages[:n], chat.messages[: n + 1]
        whole = self._render(chat, upto, False)
        if not before:
            notes.add(NO_PROMPT)
            return [], 0
        try:
            prompt = self._render(chat, before, True)
        except TemplateError as error:
            raise TemplateError(f"the template gives no prompt for message {n}, an answer: {error}") from None
        n_same = _n_alike(prompt, whole)
        if n_same < len(prompt):
            if _is_rewritten(self._render(chat, before, False), prompt, n_same):
                whole = self._behind(chat, n, prompt, whole)
                n_same = len(prompt)
            else:
                notes.add(OTHER_PROMPT)
        return self._bordered(whole, n_same, n_same == len(prompt))

    def _bordered(self, text: Text, border: int, is_prompt: bool) -> tuple[list[int], int]:
        """The tokens of a text, and the first behind a border between two characters.

        Where a token would lie across the border and a whole prompt is before it, both sides are tokenized apart, as
        the model is given the prompt; unless the tokenizer then spells another text. Else that token is behind.
        """
        ids, before = self._encode(text), self._encode(cut(text, 0, border))
        if ids[: len(before)] == before:
            return ids, len(before)
        if is_prompt:
            apart = before + self._encode(cut(text, border, len(text)))
            if self._tokenizer.decode(apart) == self._tokenizer.decode(ids):
                return apart, len(before)
        return ids, n_common(before, ids)

    def _behind(self, chat: Chat, n: int, prompt: Text, whole: Text) -> Text:
        """The prompt and then the answer, for a template that writes the messages before an answer anew with it.

        The answer begins where the rendering parts from that of another answer, if the same stands before it as
        before the end of the prompt.
        """
        other = {"role": chat.messages[n]["role"], "content": PROBE}
        n_same = _n_alike(self._render(chat, [*chat.messages[:n], other], False), whole)
        asked = chat.messages[n - 1].get("content")
        tail = str(prompt)[max(0, prompt.rfind(asked.strip())) :] if isinstance(asked, str) else str(prompt)
        if not str(whole)[:n_same].endswith(tail):
            raise TemplateError(
                f"the template renders the messages before message {n} in another way once it is answered, so the "
                "answer cannot be told apart; all needs no telling apart, as train_on",
                parameter="train_on",
            )
        return Text(str(prompt) + str(whole)[n_same:], own_of(prompt) + own_of(whole)[n_same:])

    def _end(self, ids: Sequence[int], start: int, notes: set[str]) -> int:
        """Where generation would stop: behind the first token that ends an answer."""
        stops = self._tokenizer.stop_ids
        for at in range(start, len(ids)):
            if ids[at] in stops:
                return at + 1
        if start < len(ids):
            notes.add(NO_END)
        return len(ids)

    def _render(self, chat: Chat, messages: Sequence[Mapping[str, Any]], prompts: bool) -> Text:
        variables = {**self._variables, **chat.variables}
        if self._tells_in_text(chat):
            told = told_in_text(plain_messages(messages), chat.tools or (), self._template.takes_system)
            return self._template.render(told, prompts, **variables)
        return self._template.render(messages, prompts, chat.tools, **variables)  # type: ignore[arg-type]

    def _tells_in_text(self, chat: Chat) -> bool:
        """Whether tools and calls are texts, as they are when the model runs: its template would leave them out."""
        return bool(chat.tools or holds_calls(chat.messages)) and self._template.call_syntax is None

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, parse_special=True)


def _is_answer(message: Mapping[str, Any]) -> bool:
    return message.get("role") in ANSWERS and message.get("weight", 1) != 0


def _without_weight(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message without what is said to training alone."""
    return {key: value for key, value in message.items() if key != "weight"} if "weight" in message else message


def _is_rewritten(before: Text, prompt: Text, n_same: int) -> bool:
    """Whether an answer changes how the messages before it are rendered, and not only how it is asked for."""
    return n_same < _n_alike(before, prompt)


def _n_alike(one: Text, other: Text) -> int:
    """Characters that two renderings begin with alike: the same ones, written by the template or by the chat alike."""
    return min(n_common(str(one), str(other)), n_common(one.own, other.own))
