"""The arrays of a quantized checkpoint by name: typed, checked, and taken once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FormatError
from edgellm.formats.mapped import PlainArray
from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DTYPES = {"I32": "<i4", "I64": "<i8", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?", "F64": "<f8", "U32": "<u4"}


class Arrays:
    """What a checkpoint holds: weights in floats, and arrays of integers and other types. What is taken is gone.

    floats, plain:  what is left, by name.
    has_unpacked:   whether a weight was put in the place of a quantized one.
    """

    def __init__(
        self, floats: Mapping[str, Tensor], plain: Mapping[str, PlainArray], others: Mapping[str, str]
    ) -> None:
        self.floats, self.plain = dict(floats), dict(plain)
        self.others = dict(others)
        self.has_unpacked = False

    def ending(self, suffix: str) -> Iterator[str]:
        """The modules that have a tensor of this name, without it: "model.layers.0.mlp.up_proj"."""
        for name in [*self.floats, *self.plain]:
            if name.endswith(f".{suffix}"):
                yield name.removesuffix(f".{suffix}")

    def has(self, name: str) -> bool:
        return name in self.floats or name in self.plain

    def type_of(self, name: str) -> str | None:
        """The type of an array of integers or small floats; None for other tensors, and what is not there."""
        found = self.plain.get(name)
        return found.dtype if found else None

    def integers(self, name: str, *types: str, n_dims: int | tuple[int, ...] = 2) -> NDArray[Any]:
        """An array of one of the types, as it lies in the file. Raises FormatError."""
        dims = n_dims if isinstance(n_dims, tuple) else (n_dims,)
        found = self.plain.pop(name, None)
        self.others.pop(name, None)
        if found is None:
            has = self.floats[name].format.name if name in self.floats else "missing"
            raise FormatError(f"tensor {name!r} is {has}; expected {' or '.join(types)}")
        if found.dtype not in types or len(found.shape) not in dims:
            wanted = f"{' or '.join(types)} of {' or '.join(map(str, dims))} dimensions"
            raise FormatError(f"tensor {name!r} is {found.dtype} {list(found.shape)}; expected {wanted}")
        _refuse_empty(name, found)
        return found.raw.view(_DTYPES.get(found.dtype, "u1")).reshape(found.shape)

    def any_bytes(self, name: str) -> NDArray[np.uint8]:
        """The bytes of an array, uint8 [n_bytes], whatever its type says that they are. Raises FormatError."""
        if name in self.floats:
            return self.floats.pop(name).raw.reshape(-1)
        return self.integers(name, "U8", "I8", n_dims=(1, 2)).view(np.uint8).reshape(-1)

    def numbers(self, name: str) -> tuple[NDArray[np.float32], str]:
        """An array of finite floats as float32, and its type. Raises FormatError."""
        found = self.floats.pop(name, None)
        if found is None:
            if name in self.others:
                raise FormatError(f"tensor {name!r} is {self.others[name]}; expected F32, F16 or BF16")
            raise FormatError(f"the checkpoint has no tensor {name!r} in F32, F16 or BF16")
        _refuse_empty(name, found)
        numbers = found.dequantize()
        if not np.isfinite(numbers).all():
            raise FormatError(f"tensor {name!r} holds NaN or infinity; the file is damaged")
        return numbers, found.format.name

    def drop(self, name: str) -> bool:
        """Take away what is not needed; whether it was there."""
        there = self.has(name)
        self.floats.pop(name, None)
        self.plain.pop(name, None)
        self.others.pop(name, None)
        return there

    def add(self, tensor: Tensor) -> None:
        """Put what was unpacked beside the rest. Raises FormatError for a name that is taken."""
        if self.has(tensor.name):
            raise FormatError(f"the checkpoint holds {tensor.name!r} twice, quantized and not")
        self.floats[tensor.name], self.has_unpacked = tensor, True


def _refuse_empty(name: str, found: Tensor | PlainArray) -> None:
    if not all(found.shape):
        raise FormatError(f"tensor {name!r} is of shape {list(found.shape)}: it has no numbers; the file is damaged")
