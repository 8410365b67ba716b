"""What can be learnt from: the few shapes that every kind of data becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """Messages, of which the model learns to say its own.

    messages:   each with "role" and "content", as chat templates want them.
    tools:      JSON schemas of functions that it may call, or None.
    n_given:    messages at the beginning that are given: no answer among them is learnt.
    variables:  what the template is told beside the messages.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    n_given: int = 0
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """A text and how it goes on: a question and its answer where the model has a chat template.

    bare:  the prompt where there is no template, if it is another.
    system: a system message, or None.
    tools, variables: as in `Chat`, for a chat template alone.
    """

    prompt: str
    completion: str
    bare: str | None = None
    system: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chat(self) -> Chat:
        """The same as messages."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        turn = ({"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.completion})
        return Chat([*system, *turn], self.tools, len(system) + 1, self.variables)


@dataclass(frozen=True)
class Text:
    """A text that is learnt as it is.

    in_pieces:  whether one that is longer than a document may be becomes several documents: a whole file does.
    """

    text: str
    in_pieces: bool = False


Answer = Chat | Completion


@dataclass(frozen=True)
class Preference:
    """Two answers to the same prompt, of which one is better. margin: by how much, where somebody says it."""

    chosen: Answer
    rejected: Answer
    margin: float | None = None


@dataclass(frozen=True)
class Labelled:
    """An answer, and whether it is good."""

    answer: Answer
    good: bool


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: a text, or messages. columns: the other values of its record, for who judges answers."""

    asked: str | Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)


Example = Chat | Completion | Text | Preference | Labelled | Prompt
