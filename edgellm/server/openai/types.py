"""What OpenAI's chat and text completions take. Fields that change nothing here are taken where clients send them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgellm.engine.openai import goes_on
from edgellm.server.problems import ApiProblem
from edgellm.server.sampling import Sampling, Strict


class Continuing(Strict):
    """Whether an answer goes on from the last message, in the words of vLLM and llama.cpp."""

    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def continues(self, messages: Sequence[Mapping[str, Any]]) -> bool | None:
        """Whether an answer to some messages does, the last of which may be marked for it; None where nothing is said.

        Raises ApiProblem where both are the same: an answer begins anew, or goes on. UsageError, see `goes_on`.
        """
        wish, begins = self.continue_final_message, self.add_generation_prompt
        if wish is not None and wish == begins:
            told = str(wish).lower()
            raise ApiProblem(
                400, f"continue_final_message and add_generation_prompt are both {told}; an answer either goes on from "
                "the last message or begins anew, so leave one out", "continue_final_message",
            )  # fmt: skip
        return goes_on(messages, wish if begins is None else not begins)


class Message(BaseModel):
    """One message. What else it holds is for the model's chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class Accepted(Strict):
    """Fields that clients send for OpenAI's own purposes: who asks, where it is kept, how it is paid for."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class Completing(Sampling, Accepted):
    """What chat and text completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    grammar: str | None = None
    regex: str | None = None
    choices: list[str] | None = None
    adapters: dict[str, float] | None = None
    return_progress: bool | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def keywords(self) -> dict[str, Any]:
        """Those of the engine that are given."""
        found = self.sampling()
        for name in ("grammar", "regex", "choices"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        if self.stop:
            found["stop"] = self.stop
        if self.logit_bias:
            found["logit_bias"] = {_token_id(key): value for key, value in self.logit_bias.items()}
        if self.adapters is not None:
            found["adapters"] = self.adapters
        return found


def _token_id(key: str) -> int | str:
    """Keys of JSON are texts; what is no number is refused by the engine, as it stands."""
    return int(key) if key.isascii() and key.isdigit() and len(key) < 20 else key


class ChatRequest(Completing, Continuing):
    """/v1/chat/completions"""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=0)
    max_completion_tokens: int | None = Field(default=None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    think: bool | None = None
    think_budget: int | None = Field(default=None, ge=0)
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None  # there is nothing to follow it
    # Of OpenAI's own servers; clients send null for what is not wished.
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    prediction: None = None
    web_search_options: None = None


class CompletionRequest(Completing):
    """/v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(union_mode="left_to_right")
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=128)
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
