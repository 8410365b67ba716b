"""What OpenAI's interface asks for, in the words of `Model.chat`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from edgellm import checks
from edgellm.errors import UsageError, shown
from edgellm.text.messages import call_of, check_calls

if TYPE_CHECKING:
    from typing import TypedDict

    class OpenAIKeywords(TypedDict, total=False):
        """The fields of `OpenAIParams` as keywords, for type checkers."""

        model: str | None
        max_completion_tokens: int | None
        max_tokens: int | None
        temperature: float | None
        top_p: float | None
        n: int | None
        stop: str | Sequence[str] | None
        seed: int | None
        presence_penalty: float | None
        frequency_penalty: float | None
        logit_bias: Mapping[str, float] | Mapping[int, float] | None
        logprobs: bool | None
        top_logprobs: int | None
        response_format: Any
        tools: Iterable[Any] | None
        tool_choice: Any
        parallel_tool_calls: bool | None
        reasoning_effort: str | None
        stream_options: Mapping[str, Any] | None
        user: str | None
        metadata: Mapping[str, Any] | None
        store: bool | None
        service_tier: str | None
        safety_identifier: str | None
        prompt_cache_key: str | None
        extra_body: Mapping[str, Any] | None


EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
MOST_ALTERNATIVES = 20
PREFIX = "prefix"  # marks the last message as the beginning of the answer
# Taken over as they are.
_SAME = (
    "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "response_format", "tools",
    "tool_choice", "parallel_tool_calls",
)  # fmt: skip


@dataclass(frozen=True)
class OpenAIParams:
    """What a request to /v1/chat/completions may hold beside its messages; None is as good as nothing.

    model:                what the results call the model; None takes the name of its file.
    max_completion_tokens, max_tokens:  tokens of the answer at most.
    logprobs:             whether each token has its log-probability; top_logprobs: and those of so many others.
    reasoning_effort:     "none" lets the model answer at once; any other lets it think, and is told to its template.
    stream_options:       {"include_usage": True} ends a stream with what it took.
    user, metadata, store, service_tier, safety_identifier, prompt_cache_key:  mean nothing on one's own machine.
    extra_body:           more keywords of `Model.chat`, such as {"top_k": 5}, and its `template_variables`.

    The other fields are those of `Model.chat`. Raises UsageError for values that cannot work.
    """

    model: str | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | Mapping[int, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Any = None
    tools: Iterable[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    stream_options: Mapping[str, Any] | None = None
    user: str | None = None
    metadata: Mapping[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    extra_body: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        checks.take(self, "model", checks.text, optional=True)
        checks.take(self, "n", checks.whole_number, 1, optional=True)
        for name in ("max_tokens", "max_completion_tokens"):
            checks.take(self, name, checks.whole_number, 0, optional=True)
        for name in ("logprobs", "parallel_tool_calls"):
            checks.take(self, name, checks.flag, optional=True)
        checks.take(self, "top_logprobs", checks.whole_number, 0, MOST_ALTERNATIVES, optional=True)
        checks.take(self, "reasoning_effort", checks.one_of, EFFORTS, optional=True)
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs is given, but logprobs is not True; set it", parameter="top_logprobs")
        for name, expected in (("stream_options", '{"include_usage": True}'), ("extra_body", '{"top_k": 5}'),
                               ("logit_bias", '{"15043": 1.5}')):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise checks.wrong(name, value, f"a dict such as {expected}")

    @property
    def includes_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))

    def for_chat(self, can_think: bool, tells_effort: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords for `Model.chat`, and variables for its template.

        can_think: the model's template knows of thoughts. tells_effort: and of an effort. Raises UsageError.
        """
        keywords: dict[str, Any] = {name: getattr(self, name) for name in _SAME if getattr(self, name) is not None}
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        if limits:
            keywords["max_tokens"] = min(limits)
        if self.logit_bias:
            keywords["logit_bias"] = {_token_id(key): value for key, value in self.logit_bias.items()}
        if self.logprobs:
            keywords["logprobs"] = self.top_logprobs or 0
        variables: dict[str, Any] = {}
        effort = self.reasoning_effort
        if effort is not None and not can_think and effort != "none":
            raise UsageError(
                f"reasoning_effort is {effort!r}, but this model's chat template knows of no thoughts; leave it out",
                parameter="reasoning_effort",
            )
        if effort is not None and can_think:
            keywords["think"] = effort != "none"
            if tells_effort and effort != "none":
                variables["reasoning_effort"] = effort
        extra = dict(self.extra_body or {})
        given = extra.pop("template_variables", None) or extra.pop("chat_template_kwargs", None) or {}
        if not isinstance(given, Mapping):
            raise checks.wrong("extra_body", given, "template_variables as a dict")
        return {**keywords, **extra}, {**variables, **given}


def openai_params(keywords: Mapping[str, Any]) -> OpenAIParams:
    """The parameters that keywords give. UsageError for a keyword that is none, and for what cannot work."""
    names = [field.name for field in fields(OpenAIParams)]
    for word in keywords:
        if word not in names:
            import difflib

            close = difflib.get_close_matches(word, names, 1)
            expected = f"did you mean {close[0]}?" if close else f"expected {', '.join(names)}"
            raise UsageError(
                f"{word} is no parameter of openai_chat(); {expected} (what only edgellm has, goes into extra_body)",
                parameter=word,
            )
    return OpenAIParams(**keywords)


def goes_on(messages: Sequence[Any], wish: bool | None) -> bool | None:
    """Whether the answer is to go on from the last message: it is marked as the beginning of the answer ("prefix" is
    true, as Mistral and DeepSeek have it), or that is wished for; None where nothing is said.

    Raises UsageError for a mark elsewhere, one that is neither true nor false, and one against the wish.
    """
    for n, message in enumerate(messages):
        mark = message.get(PREFIX) if isinstance(message, Mapping) else None
        if mark is None or mark is False:
            continue
        place = f"messages.{n}.{PREFIX}"
        if mark is not True:
            raise UsageError(f"{place} is {shown(mark)}; expected true or false", parameter=place)
        if n != len(messages) - 1 or message.get("role") != "assistant":
            raise UsageError(
                f"{place} is true, but an answer goes on from the last message alone, and only from the assistant's; "
                "leave it out there",
                parameter=place,
            )
        if wish is False:
            raise UsageError(
                f"{place} is true, but the answer is to begin anew (continue_final_message); leave one of them out",
                parameter=place,
            )
        return True
    return wish


def prepared(messages: Iterable[Any]) -> list[Any]:
    """Messages of OpenAI's interface as templates want them.

    Arguments of calls that stand as text become JSON, the result of a call gets the name of its tool, what developers
    say is what the system says, and a mark for `goes_on` is left out. What is no message is left to who checks
    messages. Raises UsageError for a call that is none.
    """
    messages = list(messages)
    check_calls(messages)
    names: dict[str, str] = {}
    found: list[Any] = []
    for n, message in enumerate(messages):
        if isinstance(message, Mapping):
            message = {name: value for name, value in message.items() if name != PREFIX}
            if message.get("role") == "developer":
                message["role"] = "system"
            if calls := message.get("tool_calls"):
                message["tool_calls"] = [
                    _prepared_call(call, f"messages.{n}.tool_calls.{number}", names)
                    for number, call in enumerate(calls)
                ]
            for name in ("name", "tool_call_id"):
                _check_text(message.get(name), f"messages.{n}.{name}")
            if message.get("role") == "tool" and message.get("tool_call_id") in names:
                message.setdefault("name", names[message["tool_call_id"]])
        found.append(message)
    return found


def _prepared_call(call: Mapping[str, Any], place: str, names: dict[str, str]) -> dict[str, Any]:
    if "function" not in call:
        raise UsageError(f"{place}.function is missing; expected a name and arguments", parameter=f"{place}.function")
    name, arguments = call_of(call, place)
    if call.get("type") not in (None, "function"):
        raise UsageError(f"{place}.type is {shown(call['type'])}; expected function", parameter=f"{place}.type")
    _check_text(call.get("id"), f"{place}.id")
    if call.get("id") is not None:
        names[call["id"]] = name
    return {**call, "type": "function", "function": {**call["function"], "arguments": arguments}}


def _check_text(value: Any, place: str) -> None:
    """Raises UsageError for a name or id that is neither a text nor left out."""
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{place} is {shown(value)}; expected a text", parameter=place)


def _token_id(key: Any) -> Any:
    """Keys of JSON are texts."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key
