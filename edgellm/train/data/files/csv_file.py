"""CSV (RFC 4180): a header with the keys, then a row for each example.

Between fields stand commas, or tabs where the name ends in .tsv; or, where the header has none of those, semicolons,
tabs or commas, as some programs write them. A first line `sep=;` says it.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edgellm.errors import FormatError
from edgellm.train.data.files.record import Record

LONGEST_FIELD = 16 << 20  # characters
_NUL = "\udc00"  # stands for a NUL byte, which older versions of the csv module refuse
_USUAL = {".tsv": "\t"}  # by the ending of the name; else it is the first of _SEPARATORS
_SEPARATORS = (",", ";", "\t")
_SAID = re.compile(r"sep=([,;\t])", re.IGNORECASE)  # as spreadsheets have it in the first line
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
    first, n_before = next(lines, ""), 0
    while first and not first.strip():
        first, n_before = next(lines, ""), n_before + 1
    if said := _SAID.fullmatch(first.strip(" \r\n\ufeff")):
        first, n_before = next(lines, ""), n_before + 1
    separator = said[1] if said else _separator(first, _USUAL.get(path.suffix.lower(), _SEPARATORS[0]))
    rows = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        place = f"{path}, line {n_before + rows.line_num + 1}"
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
            yield Record(place, _values(header, row), is_row=True)
    if not header:
        raise FormatError(f"{path} is empty; expected a header with the names of columns")


def _separator(header: str, usual: str) -> str:
    """What stands between the fields of a file: the usual, unless the header has another and not that."""

    def n_fields(separator: str) -> int:
        return len(next(csv.reader([header], delimiter=separator), []))

    if n_fields(usual) > 1:
        return usual
    return max((usual, *_SEPARATORS), key=n_fields)


def _values(header: list[str], row: list[str]) -> dict[str, str]:
    """The fields by their names. What has no name gets one, so that it is told; but for what holds nothing, as where
    each line ends in a comma.
    """
    named = {name: field for name, field in zip(header, row, strict=False) if name}
    for n, (name, field) in enumerate(zip(header, row, strict=False), 1):
        if field and not name:
            named[f"column {n} without a name"] = field
    return named


def _problem(row: list[str], header: list[str]) -> str | None:
    """What is wrong with a row, or None."""
    found = next(filter(None, map(_NO_TEXT.search, row)), None)
    if found:
        return "holds a NUL byte" if found[0] == _NUL else f"is not UTF-8: byte 0x{ord(found[0]) - 0xDC00:02x}"
    n_needed = max((n for n, name in enumerate(header, 1) if name), default=0)
    if header and not n_needed <= len(row) <= len(header):
        return f"has {len(row)} fields; the header has {len(header)}"
    return None


def _checked_header(place: str, row: list[str], problem: str | None) -> list[str]:
    if problem:
        raise FormatError(f"{place}: {problem}; expected a header with the names of columns")
    names = [name.strip() for name in row]
    if not any(names):
        raise FormatError(f"{place}: no column has a name; expected a header with the names of columns")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise FormatError(f"{place}: two columns are called {twice!r:.60}")
    return names
