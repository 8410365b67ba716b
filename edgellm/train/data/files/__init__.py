"""The records of data files, one after the other, with the place where each stands.

A file may be hostile. What is wrong with one record is that record's `problem`, and the reading goes on; what is
wrong with the whole file is raised as a FormatError that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from edgellm.errors import FormatError
from edgellm.train.data.files.csv_file import csv_records
from edgellm.train.data.files.json_file import json_records
from edgellm.train.data.files.json_lines import json_line_records
from edgellm.train.data.files.parquet import MAGIC, parquet_records
from edgellm.train.data.files.plain_text import text_records
from edgellm.train.data.files.record import Record

__all__ = ["Record", "read_records"]

Reader = Callable[[Path], Iterator[Record]]

READERS: dict[str, Reader] = {
    ".jsonl": json_line_records,
    ".ndjson": json_line_records,
    ".json": json_records,
    ".csv": csv_records,
    ".tsv": csv_records,
    ".parquet": parquet_records,
}
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstandard", b"BZh": "bzip2"}
WIDE = (b"\xff\xfe", b"\xfe\xff")  # how UTF-16 and UTF-32 begin


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, by the ending of its name; a name with another ending is a plain text.

    Raises FormatError for a file that cannot be read as what it is called, OSError for one that cannot be opened.
    """
    if path.is_dir():
        raise FormatError(f"{path} is a folder; name the files in it")
    if path.exists() and not path.is_file():
        raise FormatError(f"{path} is no regular file; write what it gives to one first")
    with open(path, "rb") as file:
        head = file.read(4)
    if not head:
        raise FormatError(f"{path} is empty; expected examples")
    for magic, name in PACKED.items():
        if head.startswith(magic):
            raise FormatError(f"{path} is packed ({name}); unpack it first")
    if head.startswith(WIDE):
        raise FormatError(f"{path} is UTF-16; convert it to UTF-8 first")
    reader = READERS.get(path.suffix.lower(), text_records)
    if (head == MAGIC) != (reader is parquet_records):
        told = "is a Parquet file; its name must end in .parquet" if head == MAGIC else "is no Parquet file"
        raise FormatError(f"{path} {told}")
    return reader(path)
