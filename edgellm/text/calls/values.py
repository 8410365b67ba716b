"""Values as models write them, read so that JSON can hold them again: whoever is told of a call gets it as JSON."""

from __future__ import annotations

import ast
import json
import math
import sys
from typing import Any, NoReturn

MOST = sys.float_info.max


def _number(text: str) -> float:
    """The nearest that there is: 1e999 is a number of JSON, and infinity is none."""
    return max(-MOST, min(MOST, float(text)))


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


_DECODER = json.JSONDecoder(strict=False, parse_float=_number, parse_constant=_refuse)


def decoded_at(text: str, at: int) -> tuple[Any, int]:
    """The value of JSON that begins at a place, and where it ends. Raises ValueError, RecursionError."""
    found, end = _DECODER.raw_decode(text, at)
    return (_whole(found) if "\\u" in text[at:end] else found), end


def decoded(text: str) -> Any:
    """A value of JSON. Raises ValueError, RecursionError."""
    text = text.strip()
    found, end = decoded_at(text, 0)
    if end != len(text):
        raise ValueError("something follows the value")
    return found


def plain_value(text: str) -> Any:
    """What a value that is not quoted means: JSON, Python, or else a text."""
    text = text.strip()
    try:
        return decoded(text)
    except (ValueError, RecursionError):
        pass
    try:
        return _as_json(ast.literal_eval(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _as_json(value: Any) -> Any:
    """A value of Python that JSON has too. Raises ValueError."""
    if isinstance(value, str):
        return _whole(value)
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {_whole(key): _as_json(item) for key, item in value.items()}
    raise ValueError("JSON has no such value")


def _whole(value: Any) -> Any:
    """A value without halves of characters, such as \\ud800, which escapes can write and no text holds."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return value
