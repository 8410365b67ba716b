"""The tokenizer's files in a checkpoint's folder, read within bounds: every one of them may be hostile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem, FormatError
from edgellm.formats.json_file import read_json
from edgellm.formats.strict_json import MAX_BYTES, MAX_VALUES

_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}


class Record:
    """A JSON object of a file, whose values are asked for by type; null counts as missing.

    A value of another type is a FormatError that names the file and the way to the key.
    """

    def __init__(self, values: Mapping[str, Any], file: str, trail: str = "") -> None:
        self.values = values
        self.file = file
        self.trail = trail

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def text(self, key: str) -> str | None:
        value = self._typed(key, str)
        return None if value is None else whole_text(value, f"{self.file}: {self.trail}{key}")

    def flag(self, key: str) -> bool | None:
        return self._typed(key, bool)

    def number(self, key: str) -> int | None:
        """A whole number that is not negative."""
        value = self._typed(key, int)
        if value is not None and value < 0:
            raise self.wrong(key, "a number of at least 0")
        return value

    def list(self, key: str) -> list[Any]:
        return self._typed(key, list) or []

    def record(self, key: str) -> Record | None:
        value = self._typed(key, dict)
        return None if value is None else Record(value, self.file, f"{self.trail}{key}.")

    def records(self, key: str) -> Iterator[Record]:
        """The objects of a list."""
        for i, value in enumerate(self.list(key)):
            if not isinstance(value, dict):
                raise FormatError(f"{self.file}: {self.trail}{key}[{i}] is {kind_of(value)}; expected an object")
            yield Record(value, self.file, f"{self.trail}{key}[{i}].")

    def wrong(self, key: str, expected: str) -> FormatError:
        """The error for a key whose value is missing, or not what it must be."""
        value = self.values.get(key)
        found = "missing" if value is None else shown(value)
        return FormatError(f"{self.file}: {self.trail}{key} is {found}; expected {expected}")

    def _typed(self, key: str, kind: type) -> Any:
        value = self.values.get(key)
        if value is None or type(value) is kind:
            return value
        raise FormatError(f"{self.file}: {self.trail}{key} is {kind_of(value)}; expected {_KINDS[kind]}")


class Files:
    """The files of one folder, by name; a JSON file is parsed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parsed: dict[str, Record] = {}

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def matching(self, pattern: str) -> list[str]:
        """The names of files that match a glob, relative to the folder, in order."""
        found = (path for path in self.folder.glob(pattern) if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def json(self, name: str) -> Record:
        """The object in a JSON file; an empty one when there is no such file."""
        if name not in self._parsed:
            values = read_json(self.folder / name) if self.has(name) else {}
            self._parsed[name] = Record(values, name)
        return self._parsed[name]

    def raw(self, name: str) -> bytes:
        try:
            with open(self.folder / name, "rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as problem:
            raise FileProblem(f"{name} cannot be read: {problem.strerror}") from None
        if len(raw) > MAX_BYTES:
            raise FormatError(f"{name} has more than {MAX_BYTES} bytes; no tokenizer is that large")
        return raw

    def text(self, name: str) -> str:
        try:
            return self.raw(name).decode()
        except UnicodeDecodeError as problem:
            raise FormatError(f"{name} is not UTF-8 at byte {problem.start}") from None

    def lines(self, name: str) -> list[str]:
        """The lines of a text; only a line break ends one, for other separators can be tokens."""
        text = self.text(name)
        if text.count("\n") > MAX_VALUES:
            raise FormatError(f"{name} has more than {MAX_VALUES} lines; no tokenizer is that large")
        lines = text.split("\n")
        if lines[-1] == "":
            lines.pop()
        return [line.removesuffix("\r") for line in lines]


def whole_text(text: str, where: str) -> str:
    """The text, if UTF-8 can hold it: JSON can spell half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where}: {text!r:.60} holds half of a surrogate pair, which is no text") from None
    return text


def kind_of(value: Any) -> str:
    """ "a list" and the like, for errors."""
    return _KINDS.get(type(value), "null" if value is None else "a number")


def shown(value: Any, most: int = 80) -> str:
    """A JSON value for an error, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[:most] + "..."


def added_texts(file: Record) -> set[str]:
    """The spellings of the tokens that a tokenizer.json adds beside its model's vocabulary, or sets apart within it."""
    return {text for text in (added.text("content") for added in file.records("added_tokens")) if text}
