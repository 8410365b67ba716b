"""Chat templates: from messages to the text that a model was trained on.

A GGUF file carries the template of its model in Jinja, under `tokenizer.chat_template`; some carry several,
such as one for tools. They are rendered as `transformers` does, byte for byte, but within bounds
(see `template_sandbox`), for a template is a program by a stranger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from edgellm.errors import FormatError, TemplateError, UsageError

if TYPE_CHECKING:
    from jinja2 import Template

    from edgellm.text.template_sandbox import GuardedEnvironment
    from edgellm.text.tokenizer import Tokenizer

KEY = "tokenizer.chat_template"
LONGEST_SOURCE = 300_000  # characters
DEEPEST = 100  # lists within dicts within lists in a chat
REASONING = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # names for it in a message, the standard one first


class ChatTemplate:
    """One template, compiled when it is first rendered.

    source:          Jinja text.
    special_tokens:  variables it may use, such as bos_token.
    for_tools:       another template, taken instead when there are tools.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, for_tools: str | None = None
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self._for_tools = for_tools
        self._lock = Lock()

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
        return cls(source, tokenizer.special_tokens, found.get(f"{KEY}.tool_use"))

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: list[Mapping[str, Any]] | None = None,
        documents: list[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt for some messages, each a mapping with "role" and "content".

        Encode it with `parse_special=True` and without `add_special`: it spells out special tokens itself.
        `tools` are JSON schemas; other keywords are variables of the template, such as `enable_thinking`.
        Raises TemplateError when the template is malformed, refuses the messages, or takes too much.
        """
        from edgellm.text.template_sandbox import Budget

        variables = {
            **self.special_tokens,
            **_plain(extra),
            "messages": [_with_reasoning(message) for message in _plain(list(messages))],
            "tools": _plain(tools),
            "documents": _plain(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with self._lock:
                with_tools = tools and self._for_tools
                environment, template = self._compiled_for_tools if with_tools else self._compiled
                environment.budget = Budget()
                environment.budget.weigh(variables)
                return template.render(variables)
        except TemplateError:
            raise
        except Exception as error:  # whatever a stranger's program may run into
            raise TemplateError(_explain(error)) from error

    @cached_property
    def _compiled(self) -> tuple[GuardedEnvironment, Template]:
        return _compile(self.source)

    @cached_property
    def _compiled_for_tools(self) -> tuple[GuardedEnvironment, Template]:
        return _compile(self._for_tools or "")


def _compile(source: str) -> tuple[GuardedEnvironment, Template]:
    from edgellm.text.template_sandbox import Budget, GuardedEnvironment

    if len(source) > LONGEST_SOURCE:
        raise TemplateError(
            f"the chat template has {len(source):,} characters; more than {LONGEST_SOURCE:,} are refused"
        )
    environment = GuardedEnvironment()
    environment.budget = Budget()
    return environment, environment.from_string(source)


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy made of JSON types only, so that a template meets no object with methods of its own."""
    if depth > DEEPEST:
        raise UsageError(f"the chat nests lists and dicts more than {DEEPEST} deep")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise UsageError(f"the chat holds a {type(value).__name__}; expected texts, numbers, lists and dicts")


def _with_reasoning(message: Any) -> dict[str, Any]:
    """The message with its reasoning under each of the names that templates know it by."""
    if not isinstance(message, dict):
        raise UsageError(f"a message is {message!r:.80}; expected a dict with 'role' and 'content'")
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _explain(error: Exception) -> str:
    """One line for people about what went wrong inside Jinja."""
    if isinstance(error, RecursionError):
        return "the chat template nests too deeply"
    line = getattr(error, "lineno", None)
    where = f" in line {line}" if line else ""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"the chat template fails{where}: {text:.300}"
