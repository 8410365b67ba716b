"""Chat templates: from messages to the text that a model was trained on.

A GGUF file carries the template of its model in Jinja, under `tokenizer.chat_template`; some carry several,
such as one for tools. They are rendered as `transformers` does, byte for byte, but within bounds
(see `template_sandbox`), for a template is a program by a stranger.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from edgellm.errors import FormatError, TemplateError
from edgellm.text.messages import check_objects, holds_parts, joined_parts, plain, plain_messages
from edgellm.text.provenance import Text, written

if TYPE_CHECKING:
    from jinja2 import Template

    from edgellm.text.calls import CallSyntax
    from edgellm.text.reasoning import Reasoning
    from edgellm.text.template_sandbox import GuardedEnvironment
    from edgellm.text.tokenizer import Tokenizer

KEY = "tokenizer.chat_template"
LONGEST_SOURCE = 300_000  # characters
PROBE = "a text in a part"
# Without one of these words, a template knows of no thoughts.
_MAY_THINK = re.compile("think|thought|reason|reflect", re.IGNORECASE)


class ChatTemplate:
    """One template, compiled when it is first rendered.

    source:          Jinja text.
    special_tokens:  variables it may use, such as bos_token.
    for_tools:       another template, taken instead when there are tools.
    origin:          where it comes from, for people.
    is_guess:        the file has none, and it was told by the tokens of the vocabulary.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        for_tools: str | None = None,
        origin: str = "a text",
        is_guess: bool = False,
    ) -> None:
        self.source = source
        self.origin = origin
        self.is_guess = is_guess
        self.special_tokens = dict(special_tokens or {})
        self._for_tools = for_tools
        self._lock = Lock()
        self._parts_known: dict[bool, bool] = {}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template that a GGUF file carries, or None when it carries none (a base model)."""
        found = {key: metadata[key] for key in (KEY, f"{KEY}.default", f"{KEY}.tool_use") if key in metadata}
        for key, value in found.items():
            if not isinstance(value, str):
                raise FormatError(f"{key} is a {type(value).__name__}; expected the text of a template")
        source = found.get(KEY, found.get(f"{KEY}.default"))
        if source is None:
            return None
        return cls(source, tokenizer.special_tokens, found.get(f"{KEY}.tool_use"), f"the file's own ({KEY})")

    @property
    def sources(self) -> list[str]:
        """Its own text, and that of the template for tools if there is one."""
        return [self.source, *([self._for_tools] if self._for_tools else [])]

    def check(self) -> None:
        """Raise TemplateError for a source that is no Jinja text; else that is said when it is first rendered."""
        try:
            _ = self._compiled
        except TemplateError:
            raise
        except Exception as error:
            raise TemplateError(_explain(error)) from error

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: list[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> Text:
        """The prompt for some messages, each a mapping with "role" and "content".

        The result is a `str` that knows which of its characters the template wrote itself. Encode it, as it is, with
        `parse_special=True` and without `add_special`: the template spells out special tokens, and only its own text
        makes them. What people, models and tools have said stays text, whatever it spells.

        A content may be a text or a list of parts {"type": "text", "text": ...}, and an object only where the template
        asks whether it is one ("is mapping"); a key whose value is None counts as absent. `tools` are JSON schemas;
        other keywords are variables of the template, such as `enable_thinking`. Raises UsageError for messages of
        another form, TemplateError when the template is malformed, refuses the messages, or takes too much.
        """
        chat = plain_messages(messages)
        if not any("mapping" in source for source in self.sources):
            check_objects(chat)
        if holds_parts(chat) and not self._knows_parts(bool(tools)):
            chat = joined_parts(chat)
        variables = {
            **{name: written(text) for name, text in self.special_tokens.items()},
            **plain(extra),
            "messages": chat,
            "tools": plain(tools),
            "documents": plain(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        return self._rendered(variables, bool(tools))

    @cached_property
    def call_syntax(self) -> CallSyntax | None:
        """How the template writes calls of tools; None where it does not."""
        from edgellm.text.calls import derived_syntax  # seldom needed

        return derived_syntax(self)

    @cached_property
    def reasoning(self) -> Reasoning | None:
        """How a thought is told from an answer; None where the template knows of none."""
        if not _MAY_THINK.search(self.source):
            return None
        from edgellm.text.reasoning import derived_reasoning

        return derived_reasoning(self)

    @cached_property
    def takes_system(self) -> bool:
        """Whether it takes a message of the system, and writes it."""
        try:
            told = self.render([{"role": "system", "content": PROBE}, {"role": "user", "content": "?"}])
        except TemplateError:
            return False
        return PROBE in told

    @cached_property
    def takes_messages(self) -> bool:
        """Whether it writes what a message says. One that cannot be rendered is not judged."""
        try:
            return PROBE in self.render([{"role": "user", "content": PROBE}])
        except TemplateError:
            return True

    def _rendered(self, variables: dict[str, Any], with_tools: bool) -> Text:
        try:
            with self._lock:
                environment, template = self._compiled_for_tools if with_tools and self._for_tools else self._compiled
                environment.budget.begin()
                environment.budget.allow_for(variables, len(variables["messages"]))
                prompt = template.render(variables)
                return prompt if isinstance(prompt, Text) else Text(prompt)
        except TemplateError:
            raise
        except Exception as error:  # whatever a stranger's program may run into
            raise TemplateError(_explain(error)) from error

    def _knows_parts(self, with_tools: bool) -> bool:
        """Whether the template writes the text of a part, rather than the list that it stands in."""
        if with_tools not in self._parts_known:
            try:
                shown = str(self._probe(with_tools))
            except TemplateError:
                shown = ""
            self._parts_known[with_tools] = PROBE in shown and not re.search(rf"""['"]{PROBE}['"]""", shown)
        return self._parts_known[with_tools]

    def _probe(self, with_tools: bool) -> Text:
        message = {"role": written("user"), "content": [{"type": "text", "text": PROBE}]}
        special = {name: written(text) for name, text in self.special_tokens.items()}
        return self._rendered(special | {"messages": [message], "add_generation_prompt": True}, with_tools)

    @cached_property
    def _compiled(self) -> tuple[GuardedEnvironment, Template]:
        return _compile(self.source)

    @cached_property
    def _compiled_for_tools(self) -> tuple[GuardedEnvironment, Template]:
        return _compile(self._for_tools or "")


def _compile(source: str) -> tuple[GuardedEnvironment, Template]:
    from edgellm.text.template_sandbox import GuardedEnvironment
    from edgellm.text.template_store import template_of

    if len(source) > LONGEST_SOURCE:
        raise TemplateError(
            f"the chat template has {len(source):,} characters; more than {LONGEST_SOURCE:,} are refused"
        )
    environment = GuardedEnvironment()
    return environment, template_of(source, environment)


def _explain(error: Exception) -> str:
    """One line for people about what went wrong inside Jinja."""
    if isinstance(error, RecursionError):
        return "the chat template nests too deeply"
    line = getattr(error, "lineno", None)
    where = f" in line {line}" if line else ""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"the chat template fails{where}: {text:.300}"
