"""CSV: a header with the keys, then a row for each example; with tabs where the name ends in .tsv (RFC 4180)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edgellm.errors import FormatError
from edgellm.train.data.files.record import Record

LONGEST_FIELD = 16 << 20  # characters
_NUL = "\udc00"  # stands for a NUL byte, which older versions of the csv module refuse
_NO_TEXT = re.compile("[\udc00-\udcff]")  # that, and the bytes that are not UTF-8


def csv_records(path: Path) -> Iterator[Record]:
    """A record of texts for each row that is not empty; its place is the line in which the row begins."""
    usual = csv.field_size_limit(LONGEST_FIELD)
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _rows(path, file)
    finally:
        csv.field_size_limit(usual)


def _rows(path: Path, file: IO[str]) -> Iterator[Record]:
    lines = (line.replace("\0", _NUL) for line in file)
    rows = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    header: list[str] = []
    while True:
        place = f"{path}, line {rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            raise FormatError(f"{place}: {error}; expected CSV with its quotes in pairs") from None
        problem = _problem(row, header)
        if not row:
            continue
        if not header:
            header = _checked_header(place, row, problem)
        elif problem:
            yield Record(place, problem=problem)
        else:
            yield Record(place, dict(zip(header, row, strict=True)), is_row=True)
    if not header:
        raise FormatError(f"{path} is empty; expected a header with the names of columns")


def _problem(row: list[str], header: list[str]) -> str | None:
    """What is wrong with a row, or None."""
    found = next(filter(None, map(_NO_TEXT.search, row)), None)
    if found:
        return "holds a NUL byte" if found[0] == _NUL else f"is not UTF-8: byte 0x{ord(found[0]) - 0xDC00:02x}"
    if header and len(row) != len(header):
        return f"has {len(row)} fields; the header has {len(header)}"
    return None


def _checked_header(place: str, row: list[str], problem: str | None) -> list[str]:
    if problem:
        raise FormatError(f"{place}: {problem}; expected a header with the names of columns")
    names = [name.strip() for name in row]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FormatError(f"{place}: two columns are called {twice!r:.60}")
    return names
