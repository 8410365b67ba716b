"""Parquet, read by pyarrow where it is installed: an extra, for it is as large as all the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem, FormatError
from edgellm.train.data.files.record import Record

MAGIC = b"PAR1"
ROWS = 256  # that are in memory at a time


def parquet_records(path: Path) -> Iterator[Record]:
    """A record for each row. Raises FileProblem where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise FileProblem(f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or write JSONL") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise FormatError(f"{path}: two columns are called {twice!r:.60}")
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", _without_absent(row))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as problem:
        said = " ".join(str(problem).split())
        raise FormatError(f"{path}: cannot be read as Parquet after row {number}: {said:.200}") from None


def _without_absent(value: Any) -> Any:
    """Without the keys that a table gives an object only because another has them."""
    if isinstance(value, dict):
        return {key: _without_absent(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_absent(item) for item in value]
    return value
