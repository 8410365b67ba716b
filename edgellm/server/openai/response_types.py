"""What /v1/responses takes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgellm.server.openai.types import Accepted
from edgellm.server.sampling import Sampling, Strict


class TextWishes(Strict):
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None  # there is nothing to follow it


class ReasoningWishes(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None  # thoughts are given as they are
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(Strict):
    include_obfuscation: bool | None = None


class InputTokensRequest(Strict):
    """/v1/responses/input_tokens: what is read for an answer."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextWishes | None = None
    reasoning: ReasoningWishes | None = None
    truncation: Literal["disabled"] | None = None
    # Of OpenAI's own servers; clients send null for what is not wished.
    conversation: None = None
    personality: None = None

    @property
    def items(self) -> list[dict[str, Any]]:
        """What is new, as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input or []


class ResponsesRequest(InputTokensRequest, Sampling, Accepted):
    """/v1/responses. What this server does not have (background work, tools of OpenAI's own) is refused."""

    input: str | list[dict[str, Any]]
    max_output_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[str] | None = None
    background: Literal[False] | None = None
    context_management: None = None
    max_tool_calls: None = None
    moderation: None = None
    prompt: None = None
