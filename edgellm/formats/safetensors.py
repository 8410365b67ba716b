"""Safetensors files, as the Hugging Face hub holds most models: views of what is there, and streaming writing.

A file is, without gaps:

    n u64 · header, n bytes of JSON that start with "{" (spaces may fill its end) · the tensors' bytes

The header maps a tensor's name to its `dtype`, `shape` (NumPy order) and `data_offsets` [begin, end) from the
end of the header; `__metadata__` maps texts to texts. Large models are cut into shards, with an index that maps
names to files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from edgellm.errors import FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.files import atomic_write
from edgellm.formats.gguf.header import quoted
from edgellm.formats.mapped import BITS, WEIGHT_DTYPES, Contents, PlainArray, count_elements, map_file, view_tensor
from edgellm.formats.strict_json import MAX_BYTES, parse_object
from edgellm.quants import BlockFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Raw: TypeAlias = NDArray[Any] | bytes
    Source: TypeAlias = Raw | Callable[[], Raw | Iterator[Raw]]

METADATA = "__metadata__"
ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
SHARD_BYTES = 5_000_000_000

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Entry:
    """A tensor's entry in the header; `begin` and `end` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: Path) -> Contents:
    """The tensors of one file, in the order of their bytes.

    FileProblem when it is missing or unreadable, FormatError when it breaks the format's rules (gaps, overlaps
    and trailing bytes included), UnsupportedError for a dtype that nobody knows.
    """
    data = map_file(path, "a safetensors file")
    try:
        entries, start, metadata = _read_header(data)
        _check_places(entries, len(data) - start)
    except FileProblem as problem:
        raise type(problem)(f"{path}: {problem}") from None
    tensors, others, plain = {}, {}, {}
    for entry in entries:
        raw = data[start + entry.begin : start + entry.end]
        if entry.dtype in WEIGHT_DTYPES:
            tensors[entry.name] = view_tensor(entry.name, entry.shape, entry.dtype, raw)
            continue
        others[entry.name] = entry.dtype
        if BITS[entry.dtype] % 8 == 0:
            plain[entry.name] = PlainArray(entry.dtype, entry.shape, raw)
    return Contents(tensors, others, len(data), metadata, plain)


def _read_header(data: NDArray[np.uint8]) -> tuple[list[Entry], int, dict[str, str]]:
    """The tensors' entries in the order of their bytes, where these start in the file, and the metadata."""
    if len(data) < _LENGTH.size:
        raise FormatError(f"the file has {len(data)} bytes, too few for the length of a safetensors header")
    (n_bytes,) = _LENGTH.unpack_from(data.data)
    if n_bytes > MAX_BYTES:
        raise FormatError(f"its header claims {n_bytes} bytes; at most {MAX_BYTES} can be: is it a safetensors file?")
    start = _LENGTH.size + n_bytes
    if start > len(data):
        raise FormatError(f"the file is cut off: its header ends at byte {start}, the file has {len(data)}")
    raw = data[_LENGTH.size : start]
    if (first := raw[:1].tobytes()) != b"{":
        raise FormatError(f"its header starts with {first!r}, expected b'{{': is it a safetensors file?")
    header = parse_object(raw)
    metadata = header.pop(METADATA, {})
    _check_metadata(metadata)
    entries = [_read_entry(name, fields) for name, fields in header.items()]
    return sorted(entries, key=lambda entry: (entry.begin, entry.end)), start, metadata


def _check_metadata(metadata: Any) -> None:
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        raise FormatError(f"its {METADATA} is something else than texts by name")


def _read_entry(name: str, fields: Any) -> Entry:
    try:
        return Entry(name, *_checked(fields))
    except FileProblem as problem:
        raise type(problem)(f"tensor {quoted(name)}: {problem}") from None


def _checked(fields: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of a header's entry."""
    if type(fields) is not dict or fields.keys() != ENTRY_KEYS:
        raise FormatError("its entry is something else than dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise FormatError("its dtype is no text, its shape no list, or its data_offsets are not two")
    if dtype not in BITS:
        raise UnsupportedError(f"its dtype {quoted(dtype)} is unknown; known are {', '.join(BITS)}")
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise FormatError("its data_offsets are not two whole numbers, begin and end")
    n_bytes, rest = divmod(count_elements(shape) * BITS[dtype], 8)
    if rest or end - begin != n_bytes:
        needed = f"{n_bytes} bytes" if not rest else "no whole number of bytes"
        raise FormatError(f"its data_offsets hold {end - begin} bytes; {dtype} {shape} takes {needed}")
    return dtype, tuple(shape), begin, end


def _check_places(entries: list[Entry], n_bytes: int) -> None:
    """Sorted entries must fill the `n_bytes` after the header, each byte once."""
    end, before = 0, "the header"
    for entry in entries:
        if entry.begin < end:
            raise FormatError(f"tensors {before} and {quoted(entry.name)} overlap")
        if entry.begin > end:
            unused = f"{entry.begin - end} bytes between {before} and {quoted(entry.name)}"
            raise FormatError(f"{unused} belong to no tensor")
        end, before = entry.end, quoted(entry.name)
    if end > n_bytes:
        raise FormatError(f"the file is cut off: tensor {before} ends at byte {end} of the data, there are {n_bytes}")
    if end < n_bytes:
        raise FormatError(f"{n_bytes - end} bytes after {before} belong to no tensor")


def write_safetensors(
    folder: Path,
    tensors: Iterable[tuple[str, Sequence[int], BlockFormat, Source]],
    shard_bytes: float = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `model.safetensors`, or shards of at most `shard_bytes` and their index; returns the paths.

    tensors:   (name, shape in NumPy order, format F32, F16 or BF16, raw); raw is an array, bytes, or a callable
               that makes one or an iterator of several, its bytes in order. Callables run one after the other,
               so that one tensor, or one piece of it, is in memory at a time.
    metadata:  texts by name, {"format": "pt"} unless given, which readers of the field expect.

    The folder must hold no weights of that name yet: several files cannot be replaced as one. Each file is
    written beside its name and renamed, the index last; when anything fails, none of them is left.
    UsageError for what the format cannot hold, a folder that holds weights, or bytes that do not fit a shape.
    """
    entries, sources = _plan(tensors)
    shards = _cut(entries, shard_bytes)
    present = sorted(path.name for path in folder.glob("model*.safetensors*"))
    if present:
        raise UsageError(f"{folder} already holds {present[0]}; give a new folder, or remove its weights")
    paths = _shard_paths(folder, len(shards))
    written: list[Path] = []
    try:
        for path, shard in zip(paths, shards, strict=True):
            with atomic_write(path) as file:
                _write_file(file, shard, sources, {"format": "pt"} if metadata is None else metadata)
            written.append(path)
        if len(shards) > 1:
            written.append(folder / "model.safetensors.index.json")
            with atomic_write(written[-1]) as file:
                file.write(_index(paths, shards))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def write_safetensors_file(
    path: Path,
    tensors: Iterable[tuple[str, Sequence[int], BlockFormat, Source]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file of any name, in place of what may be there; the arguments are those of `write_safetensors`."""
    entries, sources = _plan(tensors)
    with atomic_write(path) as file:
        _write_file(file, entries, sources, {"format": "pt"} if metadata is None else metadata)


def _plan(
    tensors: Iterable[tuple[str, Sequence[int], BlockFormat, Source]],
) -> tuple[list[Entry], dict[str, Source]]:
    """The tensors' entries, each as if it stood alone, and what makes their bytes."""
    entries: list[Entry] = []
    sources: dict[str, Source] = {}
    for name, shape, block_format, source in tensors:
        if name in sources or name == METADATA:
            raise UsageError(f"tensor {quoted(name)} appears twice, or has a name that the format keeps for itself")
        if block_format.name not in WEIGHT_DTYPES:
            raise UsageError(f"tensor {quoted(name)} is {block_format}; safetensors files hold F32, F16 and BF16")
        dims = tuple(int(dim) for dim in shape)
        try:
            n_bytes = count_elements(dims) * block_format.block_bytes
        except FormatError as problem:
            raise UsageError(f"tensor {quoted(name)}: {problem}") from None
        entries.append(Entry(name, block_format.name, dims, 0, n_bytes))
        sources[name] = source
    return entries, sources


def _cut(entries: list[Entry], shard_bytes: float) -> list[list[Entry]]:
    """The entries in shards of at most `shard_bytes`, or of one tensor that is larger."""
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.end > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.end
    return shards


def _shard_paths(folder: Path, n: int) -> list[Path]:
    if n == 1:
        return [folder / "model.safetensors"]
    return [folder / f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]


def _write_file(
    file: BinaryIO,
    entries: list[Entry],
    sources: Mapping[str, Source],
    metadata: Mapping[str, str],
) -> None:
    # Wider numbers first, so that each lies at a multiple of its size, which some readers need.
    entries = sorted(entries, key=lambda entry: -BITS[entry.dtype])
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.end
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(_LENGTH.pack(len(text)) + text)
    for entry in entries:
        n_bytes = sum(file.write(piece) for piece in _pieces(sources[entry.name]))
        if n_bytes != entry.end:
            raise UsageError(f"tensor {quoted(entry.name)} was given {n_bytes} bytes; it has {entry.end}")


def _pieces(source: Source) -> Iterator[bytes | memoryview]:
    """A tensor's bytes, in one piece or as they are made."""
    made = source() if callable(source) else source
    for piece in made if isinstance(made, Iterator) else [made]:
        yield piece if isinstance(piece, bytes) else np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data


def _index(paths: list[Path], shards: list[list[Entry]]) -> bytes:
    total = sum(entry.end for shard in shards for entry in shard)
    weight_map = {entry.name: path.name for path, shard in zip(paths, shards, strict=True) for entry in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2) + "\n").encode()
