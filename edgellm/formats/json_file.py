"""JSON files of a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import FileProblem, FormatError
from edgellm.formats.strict_json import MAX_BYTES, parse, parse_object


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. FileProblem when it cannot be read, FormatError when it is something else."""
    raw = _bytes_of(path)
    try:
        return parse_object(np.frombuffer(raw, np.uint8))
    except FormatError as problem:
        raise FormatError(f"{path.name}: {problem}") from None


def read_json_list(path: Path) -> list[Any]:
    """The same for a file that holds a list."""
    try:
        found = parse(_bytes_of(path))
    except FormatError as problem:
        raise FormatError(f"{path.name}: {problem}") from None
    if not isinstance(found, list):
        raise FormatError(f"{path.name}: its JSON is a {type(found).__name__}; expected a list")
    return found


def _bytes_of(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # opening a pipe could wait for ever
        raise FileProblem(f"{path.name} is not a file")
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise FileProblem(f"{path.name} is missing") from None
    except OSError as problem:
        raise FileProblem(f"{path.name} cannot be read: {problem.strerror}") from None
