"""JSON: a list of objects, or an object that holds one such list, or a single example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgellm.errors import FormatError
from edgellm.formats.strict_json import MAX_BYTES, parse
from edgellm.train.data.files.json_lines import BOM, json_line_records, record_of
from edgellm.train.data.files.record import Record


def json_records(path: Path) -> Iterator[Record]:
    """A record for each entry of the file's list. Lines of objects, as in a .jsonl file, are read as such."""
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(f"{path} has more than {MAX_BYTES:,} bytes; write so many examples as JSONL, one in a line")
    raw = path.read_bytes().removeprefix(BOM)
    if _holds_lines(raw):
        yield from json_line_records(path)
        return
    try:
        found = parse(raw)
    except FormatError as problem:
        raise FormatError(f"{path}: {problem}") from None
    name, entries = _entries(path, found)
    for number, entry in enumerate(entries, 1):
        yield record_of(f"{path}, entry {number}{name}", entry)


def _holds_lines(raw: bytes) -> bool:
    """Whether the first line is a whole object, and others follow."""
    first, _, rest = raw.lstrip().partition(b"\n")
    if not (first.startswith(b"{") and rest.strip()):
        return False
    try:
        return isinstance(parse(first), dict)
    except FormatError:
        return False


def _entries(path: Path, found: Any) -> tuple[str, list[Any]]:
    """Where the entries stand, for people, and the entries."""
    if isinstance(found, list):
        return "", found
    expected = "expected a list of objects, or an object that holds one such list"
    if not isinstance(found, dict):
        raise FormatError(f"{path}: its JSON is a {type(found).__name__}; {expected}")
    lists = {key: value for key, value in found.items() if _is_list_of_examples(value)}
    if len(lists) > 1:
        names = ", ".join(map(repr, lists))
        raise FormatError(f"{path}: its object holds {len(lists)} lists ({names:.200}); {expected}")
    if not lists:
        return "", [found]
    ((key, entries),) = lists.items()
    return f" of {key!r:.60}", entries


def _is_list_of_examples(value: Any) -> bool:
    """Whether this is a list of objects, and not the messages of a single chat, its tools or answers."""
    return isinstance(value, list) and any(
        isinstance(item, dict) and not item.keys() & {"role", "from", "function", "name"} for item in value
    )
