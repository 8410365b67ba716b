"""Scalars for TensorBoard: its event files, which are records of protocol buffers (TFRecord).

A record is the length of its data (u64), a checksum of that, the data, and a checksum of them. The data are one
`Event` (tensorboard/compat/proto/event.proto), of which only numbers by name are written here.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem

TAGS = {
    "loss": "loss/train",
    "validation_loss": "loss/validation",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "tokens_per_second": "tokens_per_second",
}
_CASTAGNOLI = 0x82F63B78
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # types of fields


def is_installed() -> bool:
    """Whether there is a TensorBoard on this machine to look at event files with."""
    return find_spec("tensorboard") is not None


class EventFile:
    """A new event file in a folder. Raises FileProblem when it cannot be written, now or later.

    resumed_at:  events after this step, in files of the same folder, are to be forgotten.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        self._path = folder / f"events.out.tfevents.{time.time_ns() // 1000:020d}.{os.getpid()}"
        self._file: Any = None
        self._write(_field(3, b"brain.Event:2"))
        if resumed_at is not None:
            self._write(_field(2, resumed_at + 1), _field(7, _field(1, 1)))  # a session that starts there

    def write(self, entry: Mapping[str, Any]) -> None:
        """The numbers of a log's entry."""
        values = [_field(1, _field(1, tag.encode()) + _field(2, _Float(entry[name])))
                  for name, tag in TAGS.items() if name in entry]  # fmt: skip
        self._write(_field(2, entry["step"]), _field(5, b"".join(values)))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, *fields: bytes) -> None:
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115  # until `close`
            self._file.write(_record(_field(1, time.time()) + b"".join(fields)))
        except OSError as problem:
            raise FileProblem(f"{self._path} cannot be written: {problem.strerror}") from None


class _Float(float):
    """A number of 32 bits."""


def _field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protocol buffer: a whole number, a number of 64 or 32 bits, or bytes."""
    if isinstance(value, bytes):
        return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    if isinstance(value, _Float):
        return _varint(number << 3 | _FLOAT) + struct.pack("<f", value)
    return _varint(number << 3 | _DOUBLE) + struct.pack("<d", value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, turned and shifted as this format wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_TABLE = [_remainder(byte) for byte in range(256)]
