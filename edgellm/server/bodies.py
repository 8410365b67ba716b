"""What a client sent, read within bounds and checked against what the interface takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from edgellm.errors import FormatError, shown
from edgellm.formats import strict_json
from edgellm.server.problems import ApiProblem

Body = TypeVar("Body", bound=BaseModel)
MOST_NAMED = 3  # faults of a request that are told


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
        raise ApiProblem(400, f"the body is {shown(found)}; expected a JSON object")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    except RecursionError:
        raise ApiProblem(400, "the body is nested too deeply") from None
    told = "; ".join(dict.fromkeys(_fault(fault, kind) for fault in faults[:MOST_NAMED]))
    param = _place(faults[0]["loc"])
    code = "unknown_field" if faults[0]["type"] == "extra_forbidden" else None
    raise ApiProblem(400, told, param, code)


def _fault(fault: Any, kind: type[BaseModel]) -> str:
    place = _place(fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown field {place}"
    if fault["type"] == "missing":
        return f"{place} is missing"
    expected = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{place or 'the body'} is {shown(fault['input'])}; {expected}"[:300]


def _place(loc: tuple[int | str, ...]) -> str:
    """messages.0.content, without the names that pydantic gives to the kinds of a union."""
    return ".".join(str(part) for part in loc if not _is_kind(part))[:200]


def _is_kind(part: int | str) -> bool:
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in ("str", "int", "float", "bool"))
