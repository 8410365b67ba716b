"""JSONL: an object in every line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgellm.errors import FormatError
from edgellm.formats.strict_json import parse
from edgellm.train.data.files.record import DEEPEST, Record, is_too_deep

LONGEST_LINE = 64 << 20  # bytes
BOM = b"\xef\xbb\xbf"
KINDS = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}


def json_line_records(path: Path) -> Iterator[Record]:
    """A record for each line that is not empty."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            place = f"{path}, line {number}"
            if len(line) > LONGEST_LINE:
                _go_to_next_line(file, line)
                yield Record(place, problem=f"is longer than {LONGEST_LINE >> 20} MiB")
                continue
            if number == 1:
                line = line.removeprefix(BOM)
            if line.strip():
                yield object_record(place, line)


def object_record(place: str, raw: bytes) -> Record:
    """The record that some bytes of JSON spell, or what is wrong with them."""
    if b"\0" in raw:
        return Record(place, problem=f"holds a NUL byte at column {raw.index(0) + 1}; the file is damaged, or no text")
    try:
        found = parse(raw.strip())
    except FormatError as problem:
        return Record(place, problem=str(problem))
    return record_of(place, found)


def record_of(place: str, found: object) -> Record:
    """The record that a value of JSON is, if it is an object."""
    if not isinstance(found, dict):
        return Record(place, problem=f"is {KINDS.get(type(found), 'something else')}; expected an object {{...}}")
    if is_too_deep(found):
        return Record(place, problem=f"nests lists and objects more than {DEEPEST} deep")
    return Record(place, found)


def _go_to_next_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(1 << 20)
