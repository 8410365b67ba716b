"""What a client sent, read within bounds and checked against what the interface takes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from edgellm.errors import FormatError
from edgellm.formats import strict_json
from edgellm.server.problems import ApiProblem

Body = TypeVar("Body", bound=BaseModel)
MOST_NAMED = 3  # faults of a request that are told
# What pydantic says, and what it means in JSON.
IN_PLAIN_WORDS = {
    "None": "null", "True": "true", "False": "false", "a valid string": "a text", "a valid list": "a list",
    "a valid integer": "a whole number", "a valid number": "a number", "a valid boolean": "true or false",
    "a valid dictionary": "an object", "dictionary": "object",
}  # fmt: skip
# Likewise of how much there may be.
ABOUT_SIZES = (
    (r"^List should have (at \w+ \d+ items?) after validation, not .*", r"a list with \1"),
    (r"^(String|Bytes) should have (at \w+ \d+) characters?", r"a text with \2 characters"),
    (r"^greater than or equal to ", "a number of at least "),
    (r"^less than or equal to ", "a number of at most "),
    (r" or instance of \w+$", ""),
)


async def read_bytes(request: Request, most: int, seconds: float) -> bytes:
    """The body. Raises ApiProblem for one that is too large, or too slow in coming; ClientDisconnect."""

    async def whole() -> bytes:
        return b"".join([part async for part in _pieces(request, most)])

    try:
        return await asyncio.wait_for(whole(), seconds)
    except asyncio.TimeoutError:
        raise _too_slow(seconds) from None


async def within(request: Request, most: int, seconds: float) -> AsyncGenerator[bytes, None]:
    """The body in pieces, within the same bounds."""
    pieces = _pieces(request, most).__aiter__()
    ends = asyncio.get_running_loop().time() + seconds
    while True:
        left = ends - asyncio.get_running_loop().time()
        try:
            part = await asyncio.wait_for(pieces.__anext__(), max(left, 0.01))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise _too_slow(seconds) from None
        yield part


async def _pieces(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces, up to a size."""
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise ApiProblem(
            415, f"the body has the Content-Encoding {encoding[:40]!r}, which this server does not read; send it plain",
            headers={"Accept-Encoding": "identity", "Connection": "close"},
        )  # fmt: skip
    told = request.headers.get("content-length", "0")
    if told.isascii() and told.isdigit() and int(told) > most:
        raise _too_large(most)
    n_bytes = 0
    async for part in request.stream():
        n_bytes += len(part)
        if n_bytes > most:
            raise _too_large(most)
        yield part


def _too_slow(seconds: float) -> ApiProblem:
    return ApiProblem(408, f"the body did not come within {seconds:g} seconds", headers={"Connection": "close"})


def _too_large(most: int) -> ApiProblem:
    return ApiProblem(413, f"the body is too large; this server takes up to {most} bytes",
                      headers={"Connection": "close"})  # fmt: skip


def parsed(raw: bytes, kind: type[Body]) -> Body:
    """A body as JSON of a kind. Raises ApiProblem, which names the field."""
    try:
        found = strict_json.parse(raw)
        if b"\\u" in raw:
            _check_characters(raw, found)
    except FormatError as error:
        raise ApiProblem(400, f"the body cannot be read: {error}", code="invalid_json") from None
    return checked(found, kind)


def _check_characters(raw: bytes, found: Any) -> None:
    """Halves of a character pair are no text; they can only come from escapes."""
    if any(escape in raw for escape in (b"\\ud", b"\\uD")):
        try:
            _encode(found)
        except UnicodeEncodeError:
            raise FormatError(r"it holds half a character, such as \ud800") from None


def _encode(value: Any) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode()
            _encode(item)
    elif isinstance(value, list):
        for item in value:
            _encode(item)


def checked(found: Any, kind: type[Body]) -> Body:
    """JSON as a kind of request."""
    if not isinstance(found, dict):
        raise ApiProblem(400, f"the body is {_shown(found)}; expected a JSON object")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    except RecursionError:
        raise ApiProblem(400, "the body is nested too deeply") from None
    told: dict[str, list[str]] = {}
    for fault in faults:
        told.setdefault(_place(fault, found), []).append(_expected(fault, found))
    # Of a value that may be of several kinds, the fault inside of one is told, and not that it is none of the others.
    places = [place for place in told if not any(other.startswith(f"{place}.") for other in told)]
    lines = [_line(place, told[place])[:300] for place in places[:MOST_NAMED]]
    first = next(fault for fault in faults if _place(fault, found) == places[0])
    raise ApiProblem(400, "; ".join(lines), places[0], "unknown_field" if first["type"] == "extra_forbidden" else None)


def _line(place: str, told: list[str]) -> str:
    """All that is wrong with one value, which is told once."""
    begins = [text.partition("; expected ") for text in dict.fromkeys(told)]
    expected = " or ".join(end for _, _, end in begins if end)
    return f"{begins[0][0]}; expected {expected}" if expected else begins[0][0]


def _expected(fault: Any, found: Any) -> str:
    place = _place(fault, found)
    if fault["type"] == "extra_forbidden":
        return f"unknown field {place}"
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] == "none_required":
        return f"{place} is {_shown(fault['input'])}; expected null, as this server has no such thing: leave it out"
    expected = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    for begins, means in ABOUT_SIZES:
        expected = re.sub(begins, means, expected)
    expected = expected.replace("'", '"')
    for ours, theirs in IN_PLAIN_WORDS.items():
        expected = re.sub(rf"\b{ours}\b", theirs, expected)
    return f"{place or 'the body'} is {_shown(fault['input'])}; expected {expected[:1].lower() + expected[1:]}"


def _place(fault: Any, found: Any) -> str:
    """messages.0.content, without the names that pydantic gives to the kinds of a union: those are not in the body."""
    parts = []
    for number, part in enumerate(fault["loc"]):
        is_missing = fault["type"] == "missing" and number == len(fault["loc"]) - 1
        is_there = part in found if isinstance(found, dict) else isinstance(found, list) and isinstance(part, int)
        if is_there or is_missing:
            parts.append(str(part))
            found = None if is_missing else found[part]
    return ".".join(parts)[:200]


def _shown(value: Any, most: int = 60) -> str:
    """A value as JSON has it, in one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= most else f"{text[: most - 3]}..."
