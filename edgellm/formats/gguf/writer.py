"""Writing GGUF files, version 3."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from edgellm.errors import UsageError
from edgellm.files import atomic_write
from edgellm.formats.gguf import spec
from edgellm.formats.gguf.file import GGUFFile
from edgellm.formats.gguf.strings import StringArray
from edgellm.quants import BlockFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Raw: TypeAlias = NDArray[Any] | bytes
    TensorSource: TypeAlias = tuple[str, Sequence[int], BlockFormat, Raw | Callable[[], Raw | Iterator[Raw]]]


class GGUFWriter:
    """A GGUF file to be: `GGUFWriter(target, metadata, tensors).write()`.

    target:    a path, written beside it and renamed; or an open binary file.
    metadata:  bool, str, int (stored as u32, or the first of i32, u64, i64 that holds it), float (f32, or f64);
               sequences of str or bytes, of int (i32 or i64), of float (f32) or of bool; NumPy scalars and
               arrays, which keep their exact type. `general.alignment` is obeyed.
    tensors:   (name, shape in NumPy order, format, raw); raw is an array, bytes, or a callable that makes it, whole
               or piece by piece. Callables run one after the other while writing, so that one tensor, or one piece
               of it, at a time is in memory.

    UsageError for what GGUF cannot hold, or a tensor whose bytes are not what its shape and format need.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        metadata: Mapping[str, Any],
        tensors: Iterable[TensorSource] = (),
    ) -> None:
        self.target = target
        self.metadata = metadata
        self.tensors = list(tensors)
        self.alignment = int(metadata.get("general.alignment", spec.DEFAULT_ALIGNMENT))
        if self.alignment < 1 or self.alignment & (self.alignment - 1):
            raise UsageError(f"general.alignment is {self.alignment}; expected a power of two")

    def write(self, check: Callable[[GGUFFile], None] | None = None) -> None:
        """Write the file. `check` is given what was written, opened again; what it raises keeps a path unchanged."""
        if isinstance(self.target, (str, os.PathLike)):
            path = Path(self.target)
            with atomic_write(path) as file:
                self._write_to(file)
                if check:
                    file.flush()
                    with GGUFFile(path, file) as written:
                        check(written)
        else:
            self._write_to(self.target)

    def _write_to(self, file: BinaryIO) -> None:
        sizes = [_tensor_bytes(name, shape, block_format) for name, shape, block_format, _ in self.tensors]
        header = self._header(sizes)
        file.write(header + self._padding(len(header)))
        for (name, _, _, source), n_bytes in zip(self.tensors, sizes, strict=True):
            content = source() if callable(source) else source
            n_written = 0
            for piece in content if isinstance(content, Iterator) else (content,):
                raw = np.frombuffer(np.ascontiguousarray(piece), np.uint8)
                n_written += raw.nbytes
                file.write(raw.data)
            if n_written != n_bytes:
                raise UsageError(f"tensor {name!r} was given {n_written} bytes; it has {n_bytes}")
            file.write(self._padding(n_bytes))

    def _header(self, sizes: list[int]) -> bytes:
        names = [name for name, *_ in self.tensors]
        if len(set(names)) != len(names):
            raise UsageError("two tensors have the same name")
        parts = [spec.MAGIC_AND_VERSION.pack(spec.MAGIC, 3), spec.COUNTS.pack(len(names), len(self.metadata))]
        for key, value in self.metadata.items():
            parts += [_string(key, spec.MAX_KEY_BYTES), _value(key, value)]
        offset = 0
        for (name, shape, block_format, _), n_bytes in zip(self.tensors, sizes, strict=True):
            dims = np.array(shape[::-1], "<u8").tobytes()
            parts += [_string(name, spec.MAX_NAME_BYTES), spec.U32.pack(len(shape)), dims]
            parts += [spec.U32.pack(block_format.ggml_type), spec.U64.pack(offset)]
            offset += n_bytes + len(self._padding(n_bytes))
        return b"".join(parts)

    def _padding(self, n_bytes: int) -> bytes:
        return bytes(-n_bytes % self.alignment)


def _tensor_bytes(name: str, shape: Sequence[int], block_format: BlockFormat) -> int:
    if len(shape) > spec.MAX_DIMS or min(shape, default=1) < 1:
        raise UsageError(f"tensor {name!r} has shape {tuple(shape)}; expected up to 4 dimensions above 0")
    n_bytes = block_format.row_bytes(shape[-1] if shape else 1)
    for dim in shape[:-1]:
        n_bytes *= dim
    return n_bytes


def _string(text: str | bytes, limit: int = spec.MAX_HEADER_BYTES) -> bytes:
    try:
        raw = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise UsageError(f"{text[:40]!r} is no text: it holds half of a surrogate pair") from None
    if len(raw) > limit:
        raise UsageError(f"{raw[:40]!r}... has {len(raw)} bytes; GGUF allows {limit}")
    return spec.U64.pack(len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    """A metadata value with its type before it."""
    if isinstance(value, (bool, np.bool_)):
        return spec.U32.pack(spec.BOOL) + bytes([int(value)])
    if isinstance(value, str):
        return spec.U32.pack(spec.STRING) + _string(value)
    if isinstance(value, (int, float)) and not isinstance(value, np.generic):
        value = _smallest(key, value, ("<u4", "<i4", "<u8", "<i8") if isinstance(value, int) else ("<f4",))
    if isinstance(value, np.generic):
        dtype = value.dtype.newbyteorder("<")
        if dtype in spec.TYPE_OF_NUMBER:
            return spec.U32.pack(spec.TYPE_OF_NUMBER[dtype]) + value.astype(dtype).tobytes()
    elif isinstance(value, (Sequence, np.ndarray)):
        kind, items = _array(key, value)
        return spec.U32.pack(spec.ARRAY) + spec.U32.pack(kind) + spec.U64.pack(len(value)) + items
    raise UsageError(f"metadata key {key!r}: GGUF cannot hold a {type(value).__name__}")


def _array(key: str, values: Sequence[Any] | NDArray[Any]) -> tuple[int, bytes]:
    """The item type of an array and its items' bytes."""
    if isinstance(values, StringArray):
        values = values.as_bytes()
    if isinstance(values, np.ndarray):
        numbers = values
    elif all(isinstance(value, (str, bytes)) for value in values):
        return spec.STRING, b"".join(map(_string, values))
    elif all(isinstance(value, bool) for value in values):
        numbers = np.array(values, np.bool_)
    elif all(isinstance(value, int) for value in values):
        numbers = _smallest(key, values, ("<i4", "<i8", "<u8"))
    else:
        numbers = _smallest(key, values, ("<f4",))
    if numbers.dtype == np.bool_:
        return spec.BOOL, numbers.tobytes()
    dtype = numbers.dtype.newbyteorder("<")
    if numbers.ndim != 1 or dtype not in spec.TYPE_OF_NUMBER:
        shape = numbers.shape
        raise UsageError(f"metadata key {key!r}: GGUF cannot hold an array of {numbers.dtype} {shape}")
    return spec.TYPE_OF_NUMBER[dtype], numbers.astype(dtype).tobytes()


def _smallest(key: str, value: Any, dtypes: Sequence[str]) -> Any:
    """The number or numbers in the first of `dtypes` that holds them."""
    for dtype in map(np.dtype, dtypes):
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                numbers = np.asarray(value, dtype)
            fits = np.isfinite(numbers).all() or not np.isfinite(value).all()
            return numbers[()] if fits else np.asarray(value, "<f8")[()]
        limits, numbers = np.iinfo(dtype), np.atleast_1d(np.array(value, object))
        if all(limits.min <= number <= limits.max for number in numbers):
            return np.asarray(value, dtype)[()]
    raise UsageError(f"metadata key {key!r}: {value!r} does not fit into 64 bits")
