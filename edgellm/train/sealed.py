"""JSON files that only the run which wrote them reads: a digest in them tells what was cut off or changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem
from edgellm.files import atomic_write

_DIGEST = "digest"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write it whole or not at all, in folders that are made. Raises FileProblem when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps({**content, _DIGEST: _digest(content)}).encode())
    except OSError as problem:
        raise FileProblem(f"{path} cannot be written: {problem.strerror}") from None


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What was written, None for a file that is not there or holds anything else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.pop(_DIGEST, None) != _digest(found):
        return None
    return found


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
