"""What the system tells in small files."""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str:
    """What stands in a file, without the blanks around it; empty where it cannot be read, or is not ASCII."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
