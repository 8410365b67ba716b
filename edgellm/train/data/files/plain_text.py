"""Plain text: the whole file is one text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgellm.errors import FormatError
from edgellm.train.data.files.json_lines import BOM
from edgellm.train.data.files.record import Record


def text_records(path: Path) -> Iterator[Record]:
    """One record with the file's text; its lines end in \\n, whatever they ended in."""
    raw = path.read_bytes().removeprefix(BOM)
    if b"\0" in raw:
        raise FormatError(f"{path} holds a NUL byte at offset {raw.index(0)}: it is no text")
    try:
        text = raw.decode()
    except UnicodeDecodeError as problem:
        found = raw[problem.start]
        raise FormatError(
            f"{path} is not UTF-8 text: byte 0x{found:02x} at {problem.start}; convert it first"
        ) from None
    if not text.strip():
        raise FormatError(f"{path} is empty; expected a text")
    yield Record(str(path), {"text": text.replace("\r\n", "\n").replace("\r", "\n")}, is_file=True)
