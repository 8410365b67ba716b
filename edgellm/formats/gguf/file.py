"""An open GGUF file: metadata and tensors as views of the mapped bytes, nothing copied."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from edgellm.errors import FileProblem, FormatError
from edgellm.formats.gguf.header import Header, quoted, read_header
from edgellm.formats.gguf.strings import StringArray
from edgellm.formats.mapped import map_file, map_open
from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.formats.gguf.header import Value

T = TypeVar("T")
REQUIRED: Any = object()

_TYPE_NAMES = {int: "an integer", float: "a number", bool: "a bool", str: "a string"}
_TYPE_NAMES |= {StringArray: "an array of strings", np.ndarray: "an array of numbers"}


class GGUFFile:
    """A GGUF file of version 2 or 3, with all its parts when it is split.

    metadata:  values are int, float, bool, str, StringArray or a NumPy array, read-only views of the file.
    tensors:   by name, in the file's order.
    n_bytes:   size on disk, of all parts. paths: of all parts.

    Close it, or use it in a `with`.
    """

    path: Path
    version: int
    n_bytes: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Map the file and read its header.

        FileProblem when the file (or a part of it) is missing or unreadable, FormatError when its bytes
        break GGUF's rules, UnsupportedError when it needs a version or tensor type that edgellm lacks.
        """
        return cls(Path(path))

    def __init__(self, path: Path, file: BinaryIO | None = None) -> None:
        """See `open`; with `file`, the bytes of that open file are read, and `path` is the name it will have."""
        self.path = path
        self.paths: list[Path] = []
        self.n_bytes = 0
        tensors: dict[str, Tensor] = {}
        try:
            data = map_file(path, "a GGUF file") if file is None else map_open(file)
            header = self._add_part(path, data, tensors)
            self.version = header.version
            self.metadata = MappingProxyType(header.metadata)
            self.tensors = MappingProxyType(tensors)
            if self.get("split.count", int, 1) > 1:
                self._add_other_parts(tensors)
        except BaseException:
            tensors.clear()
            self.close()
            raise

    def get(self, key: str, kind: type[T], default: T = REQUIRED) -> T:
        """The metadata value of `key`, see `get_value`."""
        try:
            return get_value(self.metadata, key, kind, default)
        except FormatError as problem:
            raise FormatError(f"{self.path}: {problem}") from None

    def close(self) -> None:
        """Close the file. The mapping itself goes with the last array that was taken from it."""
        self.metadata, self.tensors = {}, {}

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {self.path} with {len(self.tensors)} tensors>"

    def _add_part(
        self, path: Path, data: NDArray[np.uint8], tensors: dict[str, Tensor], number: tuple[int, int] | None = None
    ) -> Header:
        """Read the header of one file and add its tensors to `tensors`; as part `number`, its index and how many."""
        self.paths.append(path)
        self.n_bytes += len(data)
        try:
            header = read_header(data.data)
        except FileProblem as problem:
            raise type(problem)(f"{path}: {problem}") from None
        if number is not None:
            _check_number(path, header.metadata, *number)
        for info in header.tensors:
            if info.name in tensors:
                raise FormatError(f"{path}: tensor {quoted(info.name)} is also in another part")
            raw = data[info.offset : info.offset + info.n_bytes]
            if len(info.shape) > 1:
                raw = raw.reshape(-1, info.format.row_bytes(info.shape[-1]))
            tensors[info.name] = Tensor(info.name, info.shape, info.format, raw)
        return header

    def _add_other_parts(self, tensors: dict[str, Tensor]) -> None:
        """A split model names its parts NAME-00001-of-00003.gguf; the first holds the metadata."""
        n_parts, index = self.get("split.count", int), self.get("split.no", int)
        name = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", self.path.name)
        if not name or int(name[3]) != n_parts or int(name[2]) != index + 1:
            raise FormatError(
                f"{self.path}: it is part {index + 1} of {n_parts}, so its name should end in "
                f"-{index + 1:05d}-of-{n_parts:05d}.gguf; give it back the name it came with"
            )
        parts = [self.path.with_name(f"{name[1]}-{i + 1:05d}-of-{n_parts:05d}.gguf") for i in range(n_parts)]
        if index != 0:
            raise FileProblem(f"{self.path} is part {index + 1} of {n_parts}; open the first, {parts[0]}")
        if missing := [part.name for part in parts if not part.exists()]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileProblem(
                f"{self.path} is part 1 of {n_parts}, and {missing[0]}{more} is not beside it; all parts of a model "
                "belong in one folder"
            )
        for i, part in enumerate(parts[1:], start=1):
            self._add_part(part, map_file(part, "a GGUF file"), tensors, (i, n_parts))
        expected = self.get("split.tensors.count", int, len(tensors))
        if len(tensors) != expected:
            raise FormatError(f"{self.path}: all parts hold {len(tensors)} tensors; expected {expected}")


def _check_number(path: Path, metadata: Mapping[str, Value], index: int, n_parts: int) -> None:
    """Raise FormatError unless the file says itself that it is the part that its name says."""
    no, count = metadata.get("split.no"), metadata.get("split.count")
    if (no, count) == (index, n_parts):
        return
    what = "it is a file of its own"
    if isinstance(no, int) and isinstance(count, int) and count > 1:
        what = f"it is part {no + 1} of {count}"
    raise FormatError(
        f"{path}: by its name it is part {index + 1} of {n_parts}, and its metadata says that {what}; fetch this part "
        "again"
    )


def get_value(metadata: Mapping[str, Any], key: str, kind: type[T], default: T = REQUIRED) -> T:
    """The metadata value of `key`, of type `kind`: int, float, bool, str, StringArray or np.ndarray.

    An integer serves as a float. FormatError names the key, what was found and what was expected; a missing
    key gives `default`, and is an error when there is none.
    """
    value = metadata.get(key)
    if value is None:
        if default is REQUIRED:
            raise FormatError(f"metadata key {key!r} is missing; expected {_TYPE_NAMES[kind]}")
        return default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        found = _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")
        raise FormatError(f"metadata key {key!r} is {found}; expected {_TYPE_NAMES[kind]}")
    return value
