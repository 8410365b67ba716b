"""What Anthropic's messages take. Fields that change nothing here are taken where clients send them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from edgellm.server.sampling import Strict


class MessageIn(BaseModel):
    """One message; its blocks are looked at when they are turned into what templates know."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str | list[dict[str, Any]]


class CountRequest(Strict):
    """/v1/messages/count_tokens"""

    model: str | None = None
    messages: list[MessageIn] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    # Every prefix is kept in the cache as long as there is room, so nobody need ask for it.
    cache_control: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None


class MessagesRequest(CountRequest):
    """/v1/messages"""

    max_tokens: int = Field(ge=0)
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    container: None = None
    inference_geo: str | None = None
    diagnostics: dict[str, Any] | None = None
    # This server's own: what happens when the context is full.
    when_full: str | None = None
    n_keep: int | None = None
