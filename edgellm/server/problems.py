"""What is told to a client that asked for something it cannot have: one error, which each interface shapes its way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm.errors import (
    BusyError,
    CacheFullError,
    ContextOverflowError,
    EdgellmError,
    MemoryLimitError,
    TemplateError,
    UsageError,
)

# The words of OpenAI and Anthropic for a status.
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
                429: "rate_limit_error"}  # fmt: skip
ANTHROPIC_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                   404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
                   503: "overloaded_error", 504: "timeout_error"}  # fmt: skip


@dataclass
class ApiProblem(Exception):
    """An answer other than the one that was asked for.

    status:  of HTTP. param: the field of the request that is to be changed. code: a word for programs.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def as_openai(self) -> dict[str, Any]:
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = OPENAI_TYPES.get(self.status, usual)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def as_anthropic(self) -> dict[str, Any]:
        usual = "invalid_request_error" if self.status < 500 else "api_error"
        return {"type": "error", "error": {"type": ANTHROPIC_TYPES.get(self.status, usual), "message": self.message}}

    def as_ollama(self) -> dict[str, Any]:
        return {"error": self.message}

    def shaped_for(self, path: str) -> dict[str, Any]:
        """As the interface has it that a path belongs to."""
        if path.startswith("/v1/messages"):
            return self.as_anthropic()
        return self.as_ollama() if path.startswith("/api/") else self.as_openai()


def problem_of(error: Exception, called: Mapping[str, str] | None = None) -> ApiProblem:
    """What a client is told of an error. called: the names that the interface has for parameters of ours."""
    if isinstance(error, ApiProblem):
        return error
    if not isinstance(error, EdgellmError):
        return ApiProblem(500, "the server made a mistake; its log says more", code="internal_error")
    message, param = str(error), error.parameter
    begins = re.match(r"(\w+)(\[\d+\])? (is|holds|has) ", message)
    about = {param, begins[1] if begins else None}
    for ours, theirs in (called or {}).items():
        if ours in about or "_" in ours:  # else it may be an ordinary word
            message = re.sub(rf"\b{ours}\b", theirs, message)
            param = theirs if param == ours else param
    if isinstance(error, ContextOverflowError):
        return ApiProblem(400, message, param, "context_length_exceeded")
    if isinstance(error, (UsageError, TemplateError)):
        return ApiProblem(400, message, param)
    if isinstance(error, (BusyError, CacheFullError, MemoryLimitError)):
        return ApiProblem(503, message, param, headers={"Retry-After": "5"})
    return ApiProblem(500, message, param)
