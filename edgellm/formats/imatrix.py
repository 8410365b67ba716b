"""Importance matrices: how much each input of a linear layer matters, as llama.cpp keeps it.

The file is GGUF with `general.type` "imatrix" and, for every weight NAME (a whole tensor name, "blk.0.attn_q.weight"),
two F32 tensors:

    NAME.in_sum2    [n_cols] or [n_mats, n_cols]: the squares of the inputs, added up over tokens
    NAME.counts     [1] or [n_mats]: how many tokens those were

n_mats is above 1 for stacked experts, each of which sees tokens of its own. Files of before July 2025 (.dat) are plain
little-endian numbers instead:

    n_entries i32
    n_entries times:  length i32 · name · n_calls i32 · n_values i32 · f32[n_values]: mean square times n_calls
    and often:        n_chunks i32 · length i32 · name of the text
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import FormatError
from edgellm.formats.gguf import GGUFFile, GGUFWriter, get_value
from edgellm.formats.gguf.strings import StringArray
from edgellm.formats.mapped import map_file
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS, BlockFormat

KIND = "imatrix"
SUMS, COUNTS = ".in_sum2", ".counts"
MAX_COUNT = 1 << 53
MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 1 << 10
MAX_DATASET_BYTES = 1 << 16
_I32 = struct.Struct("<i")


@dataclass(frozen=True)
class Importance:
    """What an importance matrix says.

    tensors:     by the name of the weight, float32 [n_cols]: the mean square of each input; [n_mats, n_cols] for
                 experts. All are finite and at least 0.
    counts:      by the same names, int64 [n_mats]: tokens of which it is the mean; of a .dat file, calls.
    n_chunks:    stretches of text that were read, of chunk_size tokens each; 0 where the file does not say.
    datasets:    names of the texts.
    """

    tensors: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.int64]]
    n_chunks: int = 0
    chunk_size: int = 0
    datasets: tuple[str, ...] = ()


def read_imatrix(path: str | os.PathLike[str]) -> Importance:
    """An importance matrix of either form.

    An expert that no token reached weighs all its inputs alike, as in llama.cpp.

    Raises FileProblem for a file that cannot be read, FormatError naming the tensor where it breaks the rules: sums
    that are negative or not finite, no tokens at all, lengths that do not fit.
    """
    path = Path(path)
    data = map_file(path, "an importance matrix")
    if bytes(data[:4]) != b"GGUF":
        return _named(path, _read_dat, data)
    with GGUFFile.open(path) as file:
        return _named(path, _read_gguf, file)


def write_imatrix(target: str | os.PathLike[str] | BinaryIO, importance: Importance) -> None:
    """Write the GGUF form, which llama.cpp's own tools read: to a path, beside it and then renamed, or an open file."""
    metadata: dict[str, Any] = {
        "general.type": KIND,
        "imatrix.datasets": list(importance.datasets),
        "imatrix.chunk_count": importance.n_chunks,
        "imatrix.chunk_size": importance.chunk_size,
    }
    entries: list[tuple[str, tuple[int, ...], BlockFormat, NDArray[np.float32]]] = []
    for name, mean in sorted(importance.tensors.items()):
        counts = importance.counts[name].astype(np.float32)
        with np.errstate(over="ignore"):
            sums = (np.atleast_2d(mean).astype(np.float64) * counts[:, None]).astype(np.float32).reshape(mean.shape)
        _check(sums, f"the importance of {name!r}")
        entries.append((f"{name}{SUMS}", sums.shape, FORMATS["F32"], sums))
        counts_shape = (1,) if mean.ndim == 1 else (len(counts), 1)
        entries.append((f"{name}{COUNTS}", counts_shape, FORMATS["F32"], counts))
    GGUFWriter(target, metadata, entries).write()


def _named(path: Path, read: Callable[[Any], Importance], source: Any) -> Importance:
    """What `read` makes of a source; its errors name the file."""
    try:
        return read(source)
    except FormatError as problem:
        raise FormatError(f"{path}: {problem}") from None


# --- GGUF ---------------------------------------------------------------------------------------------------


def _read_gguf(file: GGUFFile) -> Importance:
    kind = get_value(file.metadata, "general.type", str, "model")
    if kind != KIND:
        raise FormatError(f"it holds a {kind!r:.60}; expected an importance matrix (general.type {KIND!r})")
    tensors, counts = {}, {}
    for full_name, tensor in file.tensors.items():
        if not full_name.endswith(SUMS):
            continue  # newer files also hold plain sums, .in_sum
        name = full_name.removesuffix(SUMS)
        beside = file.tensors.get(f"{name}{COUNTS}")
        if beside is None:
            raise FormatError(f"tensor {full_name!r} comes without {name + COUNTS!r}")
        tensors[name], counts[name] = _mean(tensor, _counts(beside))
    if not tensors:
        raise FormatError(f"it holds no tensor NAME{SUMS}; expected one for each weight")
    datasets = get_value(file.metadata, "imatrix.datasets", StringArray, ())
    n_chunks, chunk_size = (get_value(file.metadata, f"imatrix.{key}", int, 0) for key in ("chunk_count", "chunk_size"))
    return Importance(MappingProxyType(tensors), MappingProxyType(counts), n_chunks, chunk_size, tuple(datasets))


def _counts(tensor: Tensor) -> NDArray[np.int64]:
    values = np.rint(_floats(tensor)).reshape(-1)
    if not values.any():
        raise FormatError(f"tensor {tensor.name!r} counts no tokens; collect the matrix again, from more text")
    if values.max() > MAX_COUNT:
        raise FormatError(f"tensor {tensor.name!r} counts {values.max():g} tokens; expected up to {MAX_COUNT}")
    return values.astype(np.int64)


def _mean(tensor: Tensor, counts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The mean squares, [n_cols] or [n_mats, n_cols], and the counts they come from, [n_mats]."""
    sums = _floats(tensor)
    sums = sums.reshape(-1, sums.shape[-1])
    if len(counts) == 1:
        counts = np.repeat(counts, len(sums))
    if len(counts) != len(sums):
        raise FormatError(f"tensor {tensor.name!r} has {len(sums)} rows and {len(counts)} counts; expected as many")
    unseen = counts == 0
    mean = sums.astype(np.float64) / np.maximum(counts, 1)[:, None]
    mean[unseen] = 1
    return (mean[0] if len(mean) == 1 else mean).astype(np.float32), counts


def _floats(tensor: Tensor) -> NDArray[np.float32]:
    if tensor.format.name != "F32" or not 1 <= len(tensor.shape) <= 3:
        raise FormatError(
            f"tensor {tensor.name!r} is {tensor.format.name} of shape {list(tensor.shape)}; expected F32 numbers"
        )
    values = tensor.dequantize()
    _check(values, f"tensor {tensor.name!r}")
    return values


def _check(values: NDArray[np.float32], what: str) -> None:
    if not np.isfinite(values).all():
        raise FormatError(f"{what} holds NaN or infinity; expected sums of squares")
    if values.min() < 0:
        raise FormatError(f"{what} holds the negative number {values.min():g}; expected sums of squares")


# --- the older form -----------------------------------------------------------------------------------------


class _Reader:
    """A place in the bytes that moves on by what is read, never past the end."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self.left:
            raise FormatError(f"the file ends inside {what}: it is cut off, or no importance matrix")
        self.position += n_bytes
        return self.data[self.position - n_bytes : self.position].tobytes()

    def number(self, low: int, high: int, what: str) -> int:
        (value,) = _I32.unpack(self.take(4, what))
        if not low <= value <= high:
            raise FormatError(f"{what} is {value}; expected a number from {low} to {high} in an importance matrix")
        return value

    def text(self, high: int, what: str) -> str:
        raw = self.take(self.number(0, high, f"the length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8: {raw[:40]!r}") from None


def _read_dat(data: NDArray[np.uint8]) -> Importance:
    reader = _Reader(data)
    tensors, counts = {}, {}
    for index in range(reader.number(1, MAX_ENTRIES, "the number of entries")):
        name = reader.text(MAX_NAME_BYTES, f"the name of entry {index}")
        if name in tensors:
            raise FormatError(f"entry {name!r:.80} appears twice")
        n_calls = reader.number(1, 2**31 - 1, f"the number of calls of {name!r:.80}")
        n_values = reader.number(1, 2**31 - 1, f"the number of values of {name!r:.80}")
        values = np.frombuffer(reader.take(4 * n_values, f"the values of {name!r:.80}"), "<f4")
        _check(values, f"entry {name!r:.80}")
        tensors[name] = (values.astype(np.float64) / n_calls).astype(np.float32)
        counts[name] = np.array([n_calls], np.int64)
    n_chunks, datasets = 0, []
    if reader.left:
        n_chunks = reader.number(0, 2**31 - 1, "the number of chunks")
        datasets = [reader.text(MAX_DATASET_BYTES, "the name of the text")]
    return Importance(MappingProxyType(tensors), MappingProxyType(counts), n_chunks, 0, tuple(datasets))
