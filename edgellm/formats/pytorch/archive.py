"""The zip archive around a PyTorch file: where each entry's bytes lie in the mapped file.

torch.save stores entries as they are, never compressed, so that a storage can be viewed in place. Only what it
writes is read here: one disk, no encryption, nothing before the archive.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf.header import quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOCAL_MAGIC = b"PK\x03\x04"
CENTRAL_MAGIC = b"PK\x01\x02"
END_MAGIC = b"PK\x05\x06"
END64_MAGIC = b"PK\x06\x06"
LOCATOR64_MAGIC = b"PK\x06\x07"

# Fields in the order of the ZIP specification (APPNOTE 6.3, sections 4.3.7 to 4.3.16).
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_EXTRA_HEAD = struct.Struct("<HH")

ENCRYPTED = 1  # a flag of an entry
EXTRA_ZIP64 = 1  # the extra field that holds numbers of 64 bits
IN_ZIP64 = 0xFFFFFFFF  # stands where that field has the number

MAX_ENTRIES = 1 << 18
MAX_DIRECTORY_BYTES = 64 << 20
MAX_COMMENT = 0xFFFF


@dataclass(frozen=True)
class Member:
    """An entry of the archive: its bytes are data[start : start + size]."""

    start: int
    size: int


def read_archive(data: NDArray[np.uint8]) -> dict[str, Member]:
    """The archive's entries by name.

    FormatError when the bytes break the rules of zip, UnsupportedError when an entry is compressed or encrypted.
    """
    n_entries, directory, directory_end = _find_directory(data)
    if n_entries > MAX_ENTRIES or directory_end - directory > MAX_DIRECTORY_BYTES:
        raise FormatError(f"its zip archive claims {n_entries} entries; edgellm reads at most {MAX_ENTRIES}")
    members: dict[str, Member] = {}
    position = directory
    for _ in range(n_entries):
        fields = _unpack(_CENTRAL, data, position, directory_end, CENTRAL_MAGIC, "an entry of its zip directory")
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        at = position + _CENTRAL.size
        position = at + name_bytes + extra_bytes + comment_bytes
        if position > directory_end:
            raise FormatError("an entry of its zip directory reaches beyond the directory")
        raw_name = data[at : at + name_bytes].tobytes()
        extra = data[at + name_bytes : at + name_bytes + extra_bytes].tobytes()
        name = _decode(raw_name)
        if name in members:
            raise FormatError(f"zip entry {quoted(name)} appears twice")
        try:
            members[name] = _locate(data, raw_name, fields, extra, directory)
        except (FormatError, UnsupportedError) as problem:
            raise type(problem)(f"zip entry {quoted(name)}: {problem}") from None
    return members


def _find_directory(data: NDArray[np.uint8]) -> tuple[int, int, int]:
    """The number of entries, and where the archive's directory starts and ends in the file."""
    tail_start = max(0, len(data) - _END.size - MAX_COMMENT)
    found = data[tail_start:].tobytes().rfind(END_MAGIC)
    if found < 0:
        raise FormatError("its zip archive has no end: the file is cut off")
    end = tail_start + found
    _, disk, first_disk, _, n_entries, size, start, comment = _unpack(
        _END, data, end, len(data), END_MAGIC, "the end of its zip archive"
    )
    if disk or first_disk or end + _END.size + comment != len(data):
        raise FormatError("its zip archive is in several parts, or bytes follow it")
    before = end - _LOCATOR64.size
    if before >= 0 and data[before : before + 4].tobytes() == LOCATOR64_MAGIC:
        _, _, end, _ = _LOCATOR64.unpack_from(data.data, before)
        fields = _unpack(_END64, data, end, before, END64_MAGIC, "the 64-bit end of its zip archive")
        n_entries, size, start = fields[7:10]
    if start + size > end:
        raise FormatError(f"its zip directory claims bytes {start} to {start + size}, but must end at {end}")
    return n_entries, start, start + size


def _unpack(
    layout: struct.Struct, data: NDArray[np.uint8], at: int, limit: int, magic: bytes, what: str
) -> tuple[Any, ...]:
    """The fields of a record at byte `at`, which must end before `limit` and start with its magic bytes."""
    if at + layout.size > limit:
        raise FormatError(f"{what} is cut off or lies outside of the file")
    fields = layout.unpack_from(data.data, at)
    if fields[0] != magic:
        raise FormatError(f"{what} starts with {fields[0]!r}, expected {magic!r}")
    return fields


def _decode(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise FormatError(f"a zip entry's name is not UTF-8: {name[:40]!r}") from None


def _locate(data: NDArray[np.uint8], name: bytes, fields: tuple[Any, ...], extra: bytes, limit: int) -> Member:
    """Where an entry's bytes lie: behind its local header, whose length the directory does not tell."""
    flags, method, packed, size, header = fields[3], fields[4], fields[8], fields[9], fields[16]
    if flags & ENCRYPTED:
        raise UnsupportedError("it is encrypted")
    if method:
        raise UnsupportedError("it is compressed; torch.save stores weights as they are: save the file again with it")
    size, packed, header = _widen([size, packed, header], extra)
    if packed != size:
        raise FormatError(f"it claims {packed} stored bytes, but {size} in all")
    local = _unpack(_LOCAL, data, header, limit, LOCAL_MAGIC, "its local header")
    name_end = header + _LOCAL.size + local[9]
    if data[header + _LOCAL.size : name_end].tobytes() != name:
        raise FormatError("its local header has another name")
    start = name_end + local[10]
    if start + size > limit:
        raise FormatError(f"it claims bytes {start} to {start + size}, but the archive's data ends at {limit}")
    return Member(start, size)


def _widen(numbers: list[int], extra: bytes) -> list[int]:
    """The numbers with those that did not fit into 32 bits taken from the extra field, where they stand in order."""
    if IN_ZIP64 not in numbers:
        return numbers
    wide: list[int] = []
    at = 0
    while at + _EXTRA_HEAD.size <= len(extra):
        kind, n_bytes = _EXTRA_HEAD.unpack_from(extra, at)
        at += _EXTRA_HEAD.size
        if kind == EXTRA_ZIP64:
            field = extra[at : at + n_bytes]
            wide = list(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            break
        at += n_bytes
    if len(wide) < numbers.count(IN_ZIP64):
        raise FormatError("its extra field lacks the sizes of 64 bits that it promises")
    return [wide.pop(0) if number == IN_ZIP64 else number for number in numbers]
