"""What the files of trained weights share: they are mapped, and their bytes seen as tensors."""

from __future__ import annotations

import math
import mmap
import os
import stat
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from edgellm.dataclass import dataclass
from edgellm.errors import FileProblem, FormatError
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Types of numbers in trained checkpoints, by their names in safetensors files. Weights are in the first three.
BITS = {"F32": 32, "F16": 16, "BF16": 16, "F64": 64, "C64": 64, "C128": 128}
BITS |= {f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)} | {"BOOL": 8}
BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8}
BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
WEIGHT_DTYPES = ("F32", "F16", "BF16")

MAX_DIMS = 16  # NumPy's limit is 32 or 64; a file that needs more than a few is no model
MAX_ELEMENTS = 1 << 56  # so that no count of bytes or bits leaves 64 bits

_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, eq=False)
class PlainArray:
    """An array of another type than weights have: integers, truth values, small floats.

    raw:  uint8 [n_bytes], a view of the mapped file.
    """

    dtype: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]


@dataclass(frozen=True)
class Contents:
    """What one file of weights holds.

    tensors:  by name, in the file's order, as views of the mapped file.
    others:   name -> type of the tensors that are no weights (I64, BOOL, F64, F8_E4M3, ...).
    n_bytes:  size on disk.
    metadata: texts that its writer put beside them, by name.
    plain:    the others whose numbers take whole bytes and lie in one piece.
    """

    tensors: dict[str, Tensor]
    others: dict[str, str]
    n_bytes: int
    metadata: dict[str, str] = field(default_factory=dict)
    plain: dict[str, PlainArray] = field(default_factory=dict)


def map_file(path: Path, kind: str) -> NDArray[np.uint8]:
    """The file's bytes, read-only and not yet read; the mapping goes with the last array that views it.

    FileProblem when it is missing, unreadable, no plain file or not downloaded, FormatError when it is empty.
    """
    try:
        # Looking first: opening a pipe or device could wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileProblem(f"{path} is not a file" + (" but a folder" if path.is_dir() else ""))
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FormatError(f"{path} is empty; expected {kind}")
            data = map_open(file)
    except FileNotFoundError:
        raise FileProblem(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:
        raise FileProblem(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if bytes(data[: len(_LFS_POINTER)]) == _LFS_POINTER:
        raise FileProblem(f"{path} is only a pointer of Git LFS to the real file; fetch that with `git lfs pull`")
    return data


def map_open(file: BinaryIO) -> NDArray[np.uint8]:
    """The bytes of an open file that has some, read-only; OSError or ValueError when it cannot be mapped."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def count_elements(shape: Sequence[object]) -> int:
    """The number of elements of a shape that a file claims; FormatError for what is no shape or beyond all size."""
    if len(shape) > MAX_DIMS:
        raise FormatError(f"it has {len(shape)} dimensions; at most {MAX_DIMS} can be")
    n_elements, bound = 1, 1
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise FormatError("its shape holds something else than whole numbers from 0 on")
        n_elements *= dim
        bound *= max(dim, 1)
        # A dimension of 0 must not hide what NumPy would multiply.
        if bound > MAX_ELEMENTS:
            raise FormatError("its shape has more elements than any file can hold")
    return n_elements


def view_tensor(name: str, shape: tuple[int, ...], dtype: str, raw: NDArray[np.uint8]) -> Tensor:
    """A tensor of one of WEIGHT_DTYPES over uint8[n_bytes], which its shape fills exactly."""
    block_format = FORMATS[dtype]
    if len(shape) > 1:
        raw = raw.reshape(math.prod(shape[:-1]), block_format.row_bytes(shape[-1]))
    return Tensor(name, shape, block_format, raw)
