"""Reading the header of a GGUF file: every number is checked before it is used."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from edgellm.errors import FileProblem, FormatError, UnsupportedError
from edgellm.formats.gguf import spec
from edgellm.formats.gguf.strings import StringArray, locate_strings
from edgellm.quants import BlockFormat, by_ggml_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Value: TypeAlias = int | float | bool | str | StringArray | NDArray[np.generic]


class TensorInfo(NamedTuple):
    """A tensor's entry: `offset` and `n_bytes` say where its bytes lie in the file, from the file's start."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    offset: int
    n_bytes: int


class Header(NamedTuple):
    version: int
    metadata: dict[str, Value]
    tensors: list[TensorInfo]


def read_header(data: memoryview) -> Header:
    """The header of the GGUF file whose bytes are `data`; its arrays are views of them.

    FormatError where the bytes break the rules, UnsupportedError for a version or type that edgellm lacks.
    """
    cursor = Cursor(data)
    magic = bytes(data[:4])
    if magic != spec.MAGIC:
        raise FormatError(f"not a GGUF file: it starts with {magic!r}, expected {spec.MAGIC!r}")
    _, version = cursor.unpack(spec.MAGIC_AND_VERSION, "its version")
    if int.from_bytes(data[4:8], "big") in spec.VERSIONS:
        raise UnsupportedError("a big-endian GGUF file; convert it to little-endian")
    if version not in spec.VERSIONS:
        raise UnsupportedError(f"GGUF version {version} is not supported, only 2 and 3; convert it again")
    n_tensors, n_metadata = cursor.unpack(spec.COUNTS, "its counts")
    # The smallest possible entries: an empty key and one byte, a nameless tensor without dimensions.
    cursor.check_count(n_metadata, 8 + 4 + 1, spec.MAX_ENTRIES, "metadata keys")
    cursor.check_count(n_tensors, 8 + 4 + 4 + 8, spec.MAX_ENTRIES, "tensors")
    metadata: dict[str, Value] = {}
    for _ in range(n_metadata):
        key = cursor.text("a metadata key", spec.MAX_KEY_BYTES)
        if key in metadata:
            raise FormatError(f"metadata key {quoted(key)} appears twice")
        try:
            metadata[key] = cursor.value()
        except FileProblem as problem:
            raise type(problem)(f"metadata key {quoted(key)}: {problem}") from None
    entries = [_read_tensor_entry(cursor) for _ in range(n_tensors)]
    tensors = _place_tensors(entries, _alignment(metadata), cursor.position, len(data))
    return Header(version, metadata, tensors)


class Cursor:
    """A place in the header that moves on by what is read, never past the end."""

    def __init__(self, data: memoryview) -> None:
        self.file_bytes = len(data)
        self.data = data[: spec.MAX_HEADER_BYTES]
        self.position = 0
        self.n_strings = 0

    def advance(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes` and return where they start."""
        start = self.position
        if n_bytes > len(self.data) - start:
            if len(self.data) < self.file_bytes:
                limit = spec.MAX_HEADER_BYTES >> 20
                raise FormatError(f"{what} reaches beyond {limit} MiB, the most edgellm reads of a header")
            raise FormatError(f"the file ends inside {what}: it is cut off, or a length is wrong")
        self.position = start + n_bytes
        return start

    def unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        return layout.unpack_from(self.data, self.advance(layout.size, what))

    def check_count(self, count: int, least_bytes: int, limit: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold, before anything is done with it."""
        if count * least_bytes > len(self.data) - self.position:
            raise FormatError(f"it claims {count} {what}, more than the file can hold")
        if count > limit:
            raise FormatError(f"it claims {count} {what}; edgellm reads at most {limit}")

    def text(self, what: str, limit: int = spec.MAX_HEADER_BYTES) -> str:
        (n_bytes,) = self.unpack(spec.U64, what)
        if n_bytes > limit:
            raise FormatError(f"{what} claims {n_bytes} bytes; at most {limit} are allowed")
        start = self.advance(n_bytes, what)
        raw = bytes(self.data[start : start + n_bytes])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8: {raw[:40]!r}") from None

    def value(self) -> Value:
        """A metadata value with its type before it."""
        (kind,) = self.unpack(spec.U32, "its type")
        if kind == spec.STRING:
            return self.text("its text")
        if kind == spec.ARRAY:
            return self.array()
        if kind == spec.BOOL:
            (byte,) = self.unpack(spec.SCALARS[0], "its value")
            if byte > 1:
                raise FormatError(f"a bool of {byte}; expected 0 or 1")
            return bool(byte)
        if kind in spec.SCALARS:
            return self.unpack(spec.SCALARS[kind], "its value")[0]
        raise FormatError(f"value type {kind} does not exist in GGUF")

    def array(self) -> StringArray | NDArray[np.generic]:
        (kind,) = self.unpack(spec.U32, "its item type")
        (count,) = self.unpack(spec.U64, "its length")
        if kind == spec.ARRAY:
            raise UnsupportedError("an array of arrays is not supported")
        if kind == spec.STRING:
            self.check_count(count, 8, spec.MAX_STRINGS - self.n_strings, "strings")
            self.n_strings += count
            starts = locate_strings(self.data, self.position, count)
            self.position = int(starts[-1])
            return StringArray(self.data, starts)
        dtype = np.dtype("<u1") if kind == spec.BOOL else spec.NUMBERS.get(kind)
        if dtype is None:
            raise FormatError(f"array item type {kind} does not exist in GGUF")
        start = self.advance(count * dtype.itemsize, f"an array of {count} items")
        numbers = np.frombuffer(self.data, dtype, count, start)
        if kind == spec.BOOL:
            if numbers.max(initial=0) > 1:
                raise FormatError("an array of bools holds other bytes than 0 and 1")
            return numbers.view(np.bool_)
        return numbers


def quoted(text: str) -> str:
    """A name from the file for an error line: one line and not too long, whatever it holds."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _read_tensor_entry(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor name", spec.MAX_NAME_BYTES)
    (n_dims,) = cursor.unpack(spec.U32, "a tensor entry")
    if n_dims > spec.MAX_DIMS:
        raise FormatError(f"tensor {quoted(name)} has {n_dims} dimensions; at most {spec.MAX_DIMS} can be")
    *dims, ggml_type, offset = cursor.unpack(_ENTRY_REST[n_dims], "a tensor entry")
    return name, tuple(reversed(dims)), ggml_type, offset


_ENTRY_REST = [struct.Struct(f"<{n_dims}QIQ") for n_dims in range(spec.MAX_DIMS + 1)]


def _alignment(metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", spec.DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise FormatError(f"general.alignment is {quoted(str(alignment))}; expected a power of two")
    return alignment


def _place_tensors(
    entries: list[tuple[str, tuple[int, ...], int, int]], alignment: int, header_bytes: int, file_bytes: int
) -> list[TensorInfo]:
    """The entries with their places in the file, which must be whole, aligned and apart from each other."""
    data_start = -(-header_bytes // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, ggml_type, offset in entries:
        if name in tensors:
            raise FormatError(f"tensor {quoted(name)} appears twice")
        try:
            tensors[name] = _place_tensor(name, shape, by_ggml_type(ggml_type), data_start, offset, alignment)
        except FileProblem as problem:
            raise type(problem)(f"tensor {quoted(name)}: {problem}") from None
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise FormatError(f"tensors {quoted(before)} and {quoted(tensor.name)} overlap")
        end, before = tensor.offset + tensor.n_bytes, tensor.name
    if end > file_bytes:
        raise FormatError(f"the file is cut off: tensor {quoted(before)} ends at byte {end}, the file has {file_bytes}")
    return list(tensors.values())


def _place_tensor(
    name: str, shape: tuple[int, ...], block_format: BlockFormat, data_start: int, offset: int, alignment: int
) -> TensorInfo:
    if 0 in shape:
        raise FormatError(f"its shape is {shape}; no dimension may be 0")
    if offset % alignment:
        raise FormatError(f"its offset {offset} is not a multiple of the alignment, {alignment}")
    n_bytes = block_format.row_bytes(shape[-1] if shape else 1)
    for dim in shape[:-1]:
        n_bytes *= dim
    return TensorInfo(name, shape, block_format, data_start + offset, n_bytes)
