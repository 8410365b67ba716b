"""Files of text as documents, a piece at a time, so that no plain text is in memory as a whole.

A plain text is one document, or several where the separator stands between them; in JSONL, JSON, CSV and Parquet each
record has one, under the key `text`. A long document comes in pieces. They end where no tokenizer that is trained here
joins anything: behind a single line break, or before a single space.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edgellm.errors import FileProblem, FormatError
from edgellm.train.data.dataset import Summary, read_examples
from edgellm.train.data.examples import Text
from edgellm.train.data.files import READERS
from edgellm.train.data.kinds import TO_IMITATE

READ_BYTES = 1 << 20
PIECE_CHARS = 1 << 18
MOST_CHARS = 1 << 22  # of a piece; a text without spaces and line breaks is then cut anywhere
NEAR_END = 1 << 12
TEXTS = [kind for kind in TO_IMITATE if kind.name == "text"]
_CUT = re.compile(r"(?<=\S)(?:\n(?=\S)|(?= \S))")


class TextFiles:
    """The documents of some UTF-8 files, in the order of the files; those of a folder by their names.

    separator:  what stands between two documents of a plain text; the line breaks around it go with it.
    n_bytes:    of all files.

    Raises FileProblem for files that are not there or are empty.
    """

    def __init__(self, paths: Sequence[Path], separator: str) -> None:
        self.paths = [file for path in paths for file in _files_of(path)]
        self.separator = separator
        self.n_bytes = sum(path.stat().st_size for path in self.paths)
        if not self.n_bytes:
            raise FileProblem(f"there is no text in {', '.join(map(str, paths))}")

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """All text in order: pieces, and of each whether a document ends with it. No document is empty.

        Raises FormatError for a file that is not UTF-8 or has a record without a text, FileProblem for one that cannot
        be read.
        """
        for path in self.paths:
            if path.suffix.lower() in READERS:
                yield from _records(path)
            else:
                yield from _pieces(_read(path), self.separator)

    def sample(self, most_bytes: int) -> Iterator[str]:
        """All pieces or, of a longer text, some from all over it: about `most_bytes`."""
        share = min(1.0, most_bytes / self.n_bytes)
        due = 1.0
        for piece, _ in self.pieces():
            if due >= 1:
                due -= 1
                yield piece
            due += share


def _files_of(path: Path) -> list[Path]:
    """The file, or all files of text in a folder and those below it."""
    if path.is_dir():
        endings = (".txt", *READERS)
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in endings and file.is_file())
        if not found:
            raise FileProblem(f"{path} is a folder without any file of text ({', '.join(endings)})")
        return found
    if not path.exists():
        raise FileProblem(f"{path} does not exist; expected a file of text, or a folder of such")
    if not path.is_file():
        raise FileProblem(f"{path} is neither a file nor a folder")
    return [path]


def _records(path: Path) -> Iterator[tuple[str, bool]]:
    """The texts of a file of records."""
    for _, example in read_examples([path], TEXTS, False, Summary()):
        assert isinstance(example, Text)  # the only kind that is wanted
        if example.text:
            yield example.text, True


def _read(path: Path) -> Iterator[str]:
    """The text of a file, some at a time: exactly as it is, but for a byte order mark at its start."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, is_first = 0, True
    try:
        with open(path, "rb") as file:
            while raw := file.read(READ_BYTES):
                text = decoder.decode(raw)
                yield text.removeprefix("\ufeff") if is_first else text
                done += len(raw)
                is_first = is_first and not text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as problem:
        # What the decoder was given begins with the bytes of a character that the part before had cut.
        at = done - (len(problem.object) - len(raw)) + problem.start
        byte = problem.object[problem.start]
        raise FormatError(f"{path} is not UTF-8 text: byte 0x{byte:02x} at {at}; convert it first") from None
    except OSError as problem:
        raise FileProblem(f"{path} cannot be read: {problem.strerror}") from None


def _pieces(parts: Iterable[str], separator: str) -> Iterator[tuple[str, bool]]:
    """The parts of a file as pieces, and whether each ends a document."""
    text, looked = "", 0
    is_first, is_new = True, True  # document of the file; nothing of this document was given yet
    for part in parts:
        text += part
        while True:
            if is_new and not is_first:
                text = text.lstrip("\r\n")
            at = text.find(separator, looked)
            if at < 0:
                break
            document = text[:at].rstrip("\r\n")
            if document or not is_new:
                yield document, True
            text, looked = text[at + len(separator) :], 0
            is_first, is_new = False, True
        if len(text) >= PIECE_CHARS and (cut := _last_cut(text, len(text) - len(separator))):
            yield text[:cut], False
            text, is_new = text[cut:], False
        looked = max(0, len(text) - len(separator) + 1)
    if text or not is_new:
        yield text, True


def _last_cut(text: str, end: int) -> int:
    """The last place up to `end` where a text can be cut, or 0."""
    for start in (max(0, end - NEAR_END), 0):
        found = max((match.end() for match in _CUT.finditer(text, start, end)), default=0)
        if found:
            return found
    return end if len(text) >= MOST_CHARS else 0
