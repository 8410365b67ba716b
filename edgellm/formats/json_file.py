"""JSON files of a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import FileProblem, FormatError
from edgellm.formats.strict_json import MAX_BYTES, parse_object


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. FileProblem when it cannot be read, FormatError when it is something else."""
    if path.exists() and not path.is_file():  # opening a pipe could wait for ever
        raise FileProblem(f"{path.name} is not a file")
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise FileProblem(f"{path.name} is missing") from None
    except OSError as problem:
        raise FileProblem(f"{path.name} cannot be read: {problem.strerror}") from None
    try:
        return parse_object(np.frombuffer(raw, np.uint8))
    except FormatError as problem:
        raise FormatError(f"{path.name}: {problem}") from None
