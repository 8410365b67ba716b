"""The two files of `edgellm batch`: requests, line by line, and the answers to them, kept from one run to the next."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.files.locking import try_lock

MOST_LINE = 64 << 20  # bytes
BEGINNING = b'{"id": "batch_req_'  # of every line of answers


@dataclass
class Requests:
    """What a file of requests holds.

    model:       that the first request names.
    custom_ids:  by the number of a line; None where it cannot be read.
    """

    path: Path
    model: str | None = None
    custom_ids: dict[int, str | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.custom_ids)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not empty, and their numbers."""
        with open(self.path, "rb") as file:
            number = 0
            while line := file.readline(MOST_LINE):
                number += 1
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise FormatError(f"{self.path} is UTF-16; expected UTF-8")
                if len(line) == MOST_LINE and not line.endswith(b"\n"):
                    raise FormatError(f"{self.path}: line {number} is longer than {MOST_LINE >> 20} MiB")
                if line.strip():
                    yield number, line


def looked_through(path: Path) -> Requests:
    """Raises FileProblem or FormatError for a file without a request that could be answered."""
    from edgellm.engine.openai.batch import BatchLineError, parse_line

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is a pipe or a device" if path.exists() else "no such file"
        expected = "; expected a file, which is read more than once" if path.exists() else ""
        raise FileProblem(f"{path} {what}{expected}" if expected else f"{path}: {what}")
    found = Requests(path)
    first_problem: BatchLineError | None = None
    n_valid = 0
    for number, line in found.lines():
        try:
            request = parse_line(number, line)
        except BatchLineError as problem:
            first_problem = first_problem or problem
            found.custom_ids[number] = problem.custom_id
            continue
        n_valid += 1
        found.custom_ids[number] = request.custom_id
        found.model = found.model or request.model
    if not found:
        raise FormatError(f"{path} holds no request; expected a line of JSON for each")
    if not n_valid:
        raise FormatError(f"{path} holds no request that could be answered: {first_problem}")
    return found


class Answers:
    """The file of answers, for more of them. done: the lines of requests that are answered in it."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self._file = path, file
        self.done: set[int] = set()

    def read(self, requests: Requests, model: str | None) -> None:
        """Take in what is there, and take away a line that was cut when its writer was killed.

        Raises UsageError for a file that holds something else, and answers to other requests or of another model.
        """
        end = 0
        with open(self.path, "rb") as kept:  # the file itself has no buffer, and would be read byte by byte
            while line := kept.readline(MOST_LINE):
                if not line.endswith(b"\n") and (line.startswith(BEGINNING) or BEGINNING.startswith(line)):
                    break
                answer = _answer(line)
                if answer is None:
                    raise UsageError(
                        f"{self.path} holds something else than answers to {requests.path.name}; choose another name "
                        "to write"
                    )
                number, about = answer
                self._check(number, about, requests, model)
                self.done.add(number)
                end += len(line)
        self._file.truncate(end)
        self._file.seek(end)

    def _check(self, number: int, about: dict[str, Any], requests: Requests, model: str | None) -> None:
        own = about.get("custom_id")
        if number not in requests.custom_ids or own != requests.custom_ids[number]:
            there = repr(requests.custom_ids[number]) if number in requests.custom_ids else "no request"
            raise UsageError(
                f"{self.path} answers other requests: line {number} was {own!r:.60}, and in {requests.path.name} it is "
                f"{there:.60}; choose another name to write"
            )
        by = ((about.get("response") or {}).get("body") or {}).get("model")
        if model is not None and isinstance(by, str) and by != model:
            raise UsageError(
                f"{self.path} has answers of {by}, and these would be answers of {model}; choose another name to write"
            )

    def add(self, line: bytes) -> None:
        """Write an answer whole, or nothing of it. Raises FileProblem saying that the others are kept."""
        end, rest = self._file.tell(), memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as problem:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), end)
            raise FileProblem(
                f"{self.path}: {problem.strerror}; the answers before are kept: make room, and the same command goes on"
            ) from None


@contextlib.contextmanager
def opened(path: Path, requests: Requests, model: str | None) -> Iterator[Answers]:
    """Raises FileProblem while another process writes there, and what `Answers.read` does. A file that was made for
    answers, and got none, is taken away again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a+b", buffering=0) as file:
        if not try_lock(file.fileno()):
            raise FileProblem(f"{path} is being written by another edgellm batch; wait until it has ended")
        try:
            answers = Answers(path, file)
            answers.read(requests, model)
            yield answers
            os.fsync(file.fileno())
        finally:
            if is_new and not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)


def _answer(line: bytes) -> tuple[int, dict[str, Any]] | None:
    """The line of a request, and the answer to it; None for anything else."""
    from edgellm.engine.openai.batch import line_number

    try:
        about = json.loads(line)
        number = line_number(about)
    except (ValueError, AttributeError, RecursionError):
        return None
    is_whole = number is not None and (about.get("response") or about.get("error"))
    return (number, about) if is_whole and number is not None else None
