"""The two files of `edgellm batch`: requests, line by line, and the answers to them, kept from one run to the next."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.files.locking import try_lock

MOST_LINE = 64 << 20  # bytes, of a request
_LOOKED_AT = 64  # bytes of a line, to tell how its characters are written
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
            number, has_begun = 0, False
            while line := file.readline(MOST_LINE):
                number += 1
                if not has_begun:
                    self._refuse_wide(line)
                    line = line.removeprefix(codecs.BOM_UTF8)
                if len(line) == MOST_LINE and not line.endswith(b"\n"):
                    raise FormatError(
                        f"{self.path}: line {number} is longer than {MOST_LINE >> 20} MiB; expected a request in each "
                        "line, and shorter ones"
                    )
                if line.strip():
                    has_begun = True
                    yield number, line

    def _refuse_wide(self, line: bytes) -> None:
        """Raise FormatError for a beginning in UTF-16 or UTF-32: with a mark that says so, or with zero bytes, which
        JSON in UTF-8 never has."""
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in line[:_LOOKED_AT]:
            raise FormatError(f"{self.path} is no UTF-8, but looks like UTF-16 or UTF-32; save it as UTF-8")


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
    """The file of answers, for more of them.

    answered:  by the line of each request that is answered in it, whether the answer tells of an error.
    n_wrong:   how many of them do.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self._file = path, file
        self.answered: dict[int, bool] = {}
        self.n_wrong = 0

    def count(self, number: int, is_wrong: bool) -> None:
        """The request of a line is answered."""
        self.n_wrong += is_wrong - self.answered.get(number, False)
        self.answered[number] = is_wrong

    def read(self, requests: Requests, model: str | None) -> None:
        """Take in what is there, and take away a line that was cut when its writer was killed.

        Raises UsageError for a file that holds something else, and answers to other requests or of another model.
        """
        from edgellm.engine.openai.batch import tells_of_an_error

        end = 0
        for line in self._lines():
            answer = _answer(line)
            is_cut = not line.endswith(b"\n")
            if answer is None and is_cut and (line.startswith(BEGINNING) or BEGINNING.startswith(line)):
                break
            if answer is None:
                raise UsageError(
                    f"{self.path} holds something else than answers to {requests.path.name}; choose another name "
                    "to write"
                )
            number, about = answer
            self._check(number, about, requests, model)
            self.count(number, tells_of_an_error(about))
            end += len(line)
            if is_cut:  # behind all of the answer
                self.add(b"\n")
                return
        self._file.truncate(end)
        self._file.seek(end)

    def _lines(self) -> Iterator[bytes]:
        """Lines of ours are read whole: with the likelihoods of many tokens, one may be longer than any request."""
        with open(self.path, "rb") as kept:  # the file itself has no buffer, and would be read byte by byte
            while line := kept.readline(MOST_LINE):
                if line.startswith(BEGINNING) and not line.endswith(b"\n"):
                    line += kept.readline()
                yield line

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
    answers, and got none, is taken away again, and so are the folders that were made for it.
    """
    new_folders = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as file:
            answers = Answers(path, file)
            answers.read(requests, model)
            yield answers
            os.fsync(file.fileno())
    finally:
        for folder in new_folders:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()  # refused while something is in it


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[FileIO]:
    """A file that is open for one process. It goes when it is new and has stayed empty."""
    is_new = not path.exists()
    try:
        with open(path, "a+b", buffering=0) as file:
            if not try_lock(file.fileno()):
                is_new = False
                raise FileProblem(f"{path} is being written by another edgellm batch; wait until it has ended")
            try:
                yield file
            finally:
                if is_new:
                    _remove_empty(path)  # while nobody else can have it
    finally:
        if is_new and sys.platform == "win32":  # which removes no open file
            _remove_empty(path)


def _remove_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        if not path.stat().st_size:
            path.unlink()


def _answer(line: bytes) -> tuple[int, dict[str, Any]] | None:
    """The number of a request's line, and the answer to it; None for anything else."""
    from edgellm.engine.openai.batch import line_number

    try:
        about = json.loads(line)
        number = line_number(about)
        response, error = about.get("response"), about.get("error")
        body = response.get("body") if response else None
    except (ValueError, AttributeError, RecursionError):
        return None
    is_whole = isinstance(body, dict) or (not response and bool(error))
    return (number, about) if is_whole and number is not None else None
