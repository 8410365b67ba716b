"""Examples as documents, within the longest length that one may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from edgellm.errors import TemplateError, UsageError
from edgellm.evaluate.windows import bos_of
from edgellm.text.common import n_common
from edgellm.train.data.chats import ChatEncoder
from edgellm.train.data.config import DataConfig
from edgellm.train.data.examples import Answer, Chat, Completion, Example, Labelled, Message, Preference, Prompt, Text
from edgellm.train.data.vocabulary import Vocabulary
from edgellm.train.documents import NOTHING, Documents

NO_TEMPLATE = (
    "this is a chat, and the model is a base model, whose file does not say how chats are written; give a template, or "
    "write the data as texts, or as prompts with completions"
)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, each as documents in which only the answer has targets. margin: see `Preference`."""

    chosen: Documents
    rejected: Documents
    margin: float | None = None


@dataclass(frozen=True)
class Judged:
    """An answer as documents in which only the answer has targets, and whether it is good."""

    documents: Documents
    good: bool


@dataclass(frozen=True)
class Asked:
    """A prompt as one document without targets, behind which the model would answer, and the example that it is of."""

    documents: Documents
    prompt: Prompt


Encoded = Documents | Pair | Judged | Asked


@dataclass
class Encoding:
    """What became of one example.

    encoded:  its documents; None when it is left out.
    lengths:  tokens of each document before any was cut.
    n_long:   documents that were longer than may be.
    left_out: why it is left out: "long", "untrained", or "same" for a pair of equal answers; else empty.
    """

    encoded: Encoded | None = None
    lengths: list[int] = field(default_factory=list)
    n_long: int = 0
    left_out: str = ""


class Encoder:
    """Turns examples into documents for one model. Without a chat template, prompts and answers are put together.

    notes:  what a person should know, with the number of examples that it is true of.
    """

    def __init__(self, vocabulary: Vocabulary, config: DataConfig) -> None:
        tokenizer, template = vocabulary.tokenizer, vocabulary.template
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._config = config
        self._chats = ChatEncoder(template, tokenizer, config.template_variables) if template else None
        self._begin = bos_of(tokenizer)
        self._end = tokenizer.encode("", add_special=True)[len(self._begin) :]

    @property
    def notes(self) -> Counter[str]:
        return self._chats.notes if self._chats else Counter()

    def unused_keys(self, example: Example) -> list[str]:
        """Keys of an example, and in its messages, that nobody looks at."""
        if self._chats is None:  # what only a template could take
            told = [part for part in _parts_of(example) if isinstance(part, (Completion, Prompt))]
            found = {"tools": any(part.tools for part in told), "chat_template_kwargs": any(p.variables for p in told)}
            return [key for key, is_given in found.items() if is_given]
        return [f"{key} in messages" for key in self._chats.unused_keys(_messages_of(example))]

    def encode(self, example: Example) -> Encoding:
        """The documents of an example. Raises TemplateError and UsageError for a chat that cannot be rendered."""
        if isinstance(example, Preference):
            return self._both(example)
        if isinstance(example, Labelled):
            result = self._fitted(self._answers(example.answer, "answers"))
            if isinstance(result.encoded, Documents):
                result.encoded = Judged(result.encoded, example.good)
            return result
        if isinstance(example, Prompt):
            return self._asked(example)
        if isinstance(example, Text):
            return self._fitted(self._text(example))
        return self._fitted(self._answers(example, self._config.train_on))

    def _both(self, pair: Preference) -> Encoding:
        results = [self._fitted(self._answers(answer, "answers")) for answer in (pair.chosen, pair.rejected)]
        lengths = [length for result in results for length in result.lengths]
        n_long = sum(result.n_long for result in results)
        left_out = next((result.left_out for result in results if result.left_out), "")
        chosen, rejected = (result.encoded for result in results)
        if not isinstance(chosen, Documents) or not isinstance(rejected, Documents):
            return Encoding(None, lengths, n_long, left_out)
        if _are_same(chosen, rejected):  # as they are written, or as they are cut: there is no better one
            return Encoding(None, lengths, n_long, "same")
        return Encoding(Pair(chosen, rejected, pair.margin), lengths, n_long)

    def _asked(self, prompt: Prompt) -> Encoding:
        """A prompt is left out when it is too long: cut, it would ask for something else."""
        ids = self._prompt_ids(prompt)
        found = Documents.of(ids, [False] * len(ids))
        self._check_rows([found])
        if len(ids) > self._config.max_length:
            return Encoding(None, [len(ids)], 1, "long")
        return Encoding(Asked(found, prompt), [len(ids)])

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if self._chats is not None:
            messages = [{"role": "user", "content": prompt.asked}] if isinstance(prompt.asked, str) else prompt.asked
            return self._chats.prompt(Chat(messages, prompt.tools, 0, prompt.variables))
        if not isinstance(prompt.asked, str):
            raise TemplateError(NO_TEMPLATE, parameter="template")
        ids = self._begin + self._tokenizer.encode(prompt.asked)
        if not ids:
            raise UsageError("'prompt' is empty")
        return ids

    def _answers(self, answer: Answer, train_on: str) -> list[Documents]:
        if isinstance(answer, Completion):
            if self._chats is None:
                return self._continued(answer, train_on)
            answer = answer.chat
        if self._chats is None:
            raise TemplateError(NO_TEMPLATE, parameter="template")
        return self._chats.whole(answer) if train_on == "all" else self._chats.answers(answer, train_on == "last")

    def answered(self, text: str) -> list[int]:
        """The tokens of a prompt with its answer, and of the end of a text."""
        end = [self._tokenizer.eos_id] if self._tokenizer.eos_id is not None else self._end
        return self._begin + self._tokenizer.encode(text) + end

    def _continued(self, answer: Completion, train_on: str) -> list[Documents]:
        """The prompt with its completion behind it and the end of a text, for a model without a chat template."""
        prompt = answer.prompt if answer.bare is None else answer.bare
        if answer.system:
            prompt = f"{answer.system}\n\n{prompt}"
        given = self._begin + self._tokenizer.encode(prompt)
        ids = self.answered(prompt + answer.completion)
        start = 0 if train_on == "all" else n_common(given, ids)
        return [Documents.of(ids, [n >= start for n in range(len(ids))])] if ids else []

    def _text(self, example: Text) -> list[Documents]:
        ids = self._begin + self._tokenizer.encode(example.text) + self._end
        longest = self._config.max_length
        if not example.in_pieces or len(ids) <= longest:
            return [_learnt(ids)] if ids else []
        # Where a text has no first token of its own, each piece begins with the last token of the piece before, so
        # that every token is learnt once.
        body = ids[len(self._begin) :]
        step = longest - (len(self._begin) or 1)
        if self._begin:
            return [_learnt([*self._begin, *body[at : at + step]]) for at in range(0, len(body), step)]
        return [_learnt(body[at : at + step + 1]) for at in range(0, len(body) - 1, step)]

    def _fitted(self, documents: Iterable[Documents]) -> Encoding:
        """Documents that are no longer than may be, and in which there is something to learn."""
        longest = self._config.max_length
        found = list(documents)
        self._check_rows(found)
        result = Encoding(lengths=[len(part) for part in found])
        result.n_long = sum(length > longest for length in result.lengths)
        if result.n_long and self._config.long == "drop":
            result.left_out = "long"
            return result
        kept = [part for part in (_cut(part, longest) for part in found) if part.n_targets]
        if kept:
            result.encoded = Documents.joined(kept)
        else:
            result.left_out = "untrained"
        return result

    def _check_rows(self, documents: Iterable[Documents]) -> None:
        largest = max((int(part.ids.max()) for part in documents), default=0)
        if largest >= self._vocabulary.n_rows:
            raise UsageError(
                f"holds token {largest} ({self._tokenizer.token_name(largest)!r:.60}), which was added to the "
                f"vocabulary and never to the model: its embedding has {self._vocabulary.n_rows} rows"
            )


def _parts_of(example: Example) -> list[Example]:
    """An example's answers, or itself where it has none apart."""
    if isinstance(example, Preference):
        return [example.chosen, example.rejected]
    return [example.answer if isinstance(example, Labelled) else example]


def _messages_of(example: Example) -> list[Message]:
    if isinstance(example, Preference):
        return [*_messages_of(example.chosen), *_messages_of(example.rejected)]
    if isinstance(example, Labelled):
        return _messages_of(example.answer)
    if isinstance(example, Prompt):
        return [] if isinstance(example.asked, str) else list(example.asked)
    return list(example.messages) if isinstance(example, Chat) else []


def _are_same(one: Documents, other: Documents) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("lengths", "ids", "targets"))


def _learnt(ids: list[int]) -> Documents:
    return Documents.of(ids, [True] * len(ids))


def _cut(document: Documents, longest: int) -> Documents:
    """The beginning of one document."""
    if len(document) <= longest:
        return document
    targets, weights = document.targets[:longest].copy(), document.weights[:longest].copy()
    targets[-1], weights[-1] = NOTHING, 0
    return Documents(document.ids[:longest], [longest], targets, weights)  # type: ignore[arg-type]
