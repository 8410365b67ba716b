"""OpenAI's batch format: a line of JSON for each request, and one for each answer.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], ...}}
    {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}},
     "error": null}

The id of an answer names the line of its request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.errors import EdgellmError, UsageError

URL = "/v1/chat/completions"
_KNOWN = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True)
class BatchRequest:
    """A line that asks for something. body: what `Model.openai_chat` takes, its messages among it."""

    line: int
    custom_id: str
    body: dict[str, Any]

    @property
    def model(self) -> str | None:
        found = self.body.get("model")
        return found if isinstance(found, str) else None


class BatchLineError(UsageError):
    """A line that asks for nothing that can be done. custom_id: where it could be read."""

    def __init__(self, text: str, custom_id: str | None = None) -> None:
        super().__init__(text)
        self.custom_id = custom_id


def parse_line(number: int, line: bytes) -> BatchRequest:
    """Raises BatchLineError naming what is wrong with a line."""
    try:
        text = line.decode()  # JSON itself would take UTF-16 too, of which a line end is a part of another character
    except UnicodeDecodeError as problem:
        raise BatchLineError(
            f"line {number} is not UTF-8 (its byte {problem.start + 1}); expected JSON in UTF-8"
        ) from None
    try:
        found = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as problem:
        raise BatchLineError(f"line {number} is not JSON: {problem}") from None
    if not isinstance(found, dict):
        raise BatchLineError(f"line {number} is {_json(found)}; expected an object with custom_id, url and body")
    custom_id, body = found.get("custom_id"), found.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        what = f"custom_id is {_json(custom_id)}" if "custom_id" in found else "it has no custom_id"
        raise BatchLineError(f"line {number}: {what}; expected a text")
    if unknown := sorted(set(found) - _KNOWN):
        raise BatchLineError(f"line {number} has {unknown[0]!r:.40}; expected {', '.join(sorted(_KNOWN))}", custom_id)
    if found.get("method", "POST") != "POST":
        raise BatchLineError(f"line {number}: method is {_json(found['method'])}; expected 'POST'", custom_id)
    if found.get("url", URL) != URL:
        raise BatchLineError(f"line {number}: url is {_json(found['url'])}; edgellm batch answers {URL}", custom_id)
    if not isinstance(body, dict) or "messages" not in body:
        what = f"body is {_json(body)}" if "body" in found else "it has no body"
        raise BatchLineError(f"line {number}: {what}; expected an object with messages", custom_id)
    if body.get("stream"):
        raise BatchLineError(f"line {number}: stream is set, and a batch gives whole answers; leave it out", custom_id)
    return BatchRequest(number, custom_id, body)


def _json(value: Any) -> str:
    """A value as it stands in a line, or its beginning."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def line_number(answer: Mapping[str, Any]) -> int | None:
    """The line that an answer belongs to; None where it is no answer of ours."""
    head, _, number = str(answer.get("id", "")).rpartition("_")
    return int(number) if head == "batch_req" and number.isdecimal() and number.isascii() else None


def tells_of_an_error(answer: Mapping[str, Any]) -> bool:
    """Whether an answer of ours says why there is none."""
    return not answer.get("response") or answer["response"].get("status_code") != 200


def answer_line(number: int, custom_id: str | None, body: Mapping[str, Any]) -> bytes:
    response = {"status_code": 200, "request_id": body["id"], "body": body}
    return _line(number, custom_id, response, None)


def error_line(number: int, custom_id: str | None, error: Exception) -> bytes:
    """For a request that cannot be answered."""
    parameter = getattr(error, "parameter", None)
    text = str(error) if isinstance(error, EdgellmError) else f"unexpected {type(error).__name__}: {error}"
    kind = "invalid_request_error" if isinstance(error, EdgellmError) else "server_error"
    if isinstance(error, BatchLineError):
        return _line(number, error.custom_id, None, {"code": "invalid_line", "message": text})
    body = {"error": {"message": text, "type": kind, "param": parameter, "code": None}}
    status = 400 if isinstance(error, EdgellmError) else 500
    return _line(number, custom_id, {"status_code": status, "request_id": f"req_{number}", "body": body}, None)


def _line(number: int, custom_id: str | None, response: Any, error: Any) -> bytes:
    about = {"id": f"batch_req_{number}", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(about, ensure_ascii=False).encode(errors="replace") + b"\n"


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found
