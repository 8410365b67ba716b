"""The fixed numbers of the GGUF format, and the limits within which edgellm believes a file.

A GGUF file (versions 2 and 3, little-endian) is, without gaps:

    magic "GGUF" · version u32 · n_tensors u64 · n_metadata u64
    n_metadata times:  key string · value type u32 · value
    n_tensors times:   name string · n_dims u32 · dims u64[n_dims] · type u32 · offset u64
    padding to `general.alignment` (32 unless the metadata says otherwise)
    the tensors' bytes, each at its offset from here, a multiple of the alignment

A string is its length as u64 and that many bytes of UTF-8. An array is its value type u32, its length u64
and its values. dims start with the contiguous one, so NumPy's shape is dims backwards.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Value types of the metadata.
BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
TYPE_OF_NUMBER = {dtype: number for number, dtype in NUMBERS.items()}

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
MAGIC_AND_VERSION = struct.Struct("<4sI")
COUNTS = struct.Struct("<QQ")
SCALARS = {number: struct.Struct("<" + dtype.char) for number, dtype in NUMBERS.items()}
SCALARS.update({10: struct.Struct("<Q"), 11: struct.Struct("<q")})  # NumPy's letter for 8 bytes varies

# Real headers stay far below these (Gemma 3: 6 MB, 0.3 million strings, 236 tensors). They bound the time
# and memory that a hostile file can cost, which may claim any number and be sparse on disk.
MAX_HEADER_BYTES = 128 << 20
MAX_ENTRIES = 1 << 16  # metadata keys; tensors
MAX_STRINGS = 1 << 21  # in all string arrays together
MAX_KEY_BYTES = 65535  # by the specification
MAX_NAME_BYTES = 64  # of tensors, by the specification
MAX_DIMS = 4  # of ggml
