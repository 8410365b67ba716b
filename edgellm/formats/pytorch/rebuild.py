"""What the names in the pickle of a PyTorch file stand for: the parts of a tensor, put together without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.errors import FormatError
from edgellm.formats.pytorch.pickle_reader import Function


@dataclass(frozen=True)
class StorageType:
    """A class of storages. The untyped one counts bytes; its tensors bring their own type."""

    dtype: str | None


@dataclass(frozen=True)
class Dtype:
    name: str


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle refers to: `size` numbers of `dtype`, or bytes when it has none."""

    key: str
    dtype: str | None
    size: int


@dataclass(frozen=True)
class StoredTensor:
    """What a tensor takes of its storage, counted in numbers; nothing is checked against the storage yet."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def find_storage(persistent_id: Any) -> Storage:
    """torch refers to a storage as ("storage", class, key, device, size)."""
    match persistent_id:
        case ("storage", StorageType(dtype), str(key), str(), size) if type(size) is int and size >= 0:
            return Storage(key, dtype, size)
    raise FormatError("it refers to something else than a storage")


def _rebuild_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])"""
    match arguments:
        case (Storage(_, str(dtype), _) as storage, offset, shape, strides, bool(), _, *_):
            return _stored_tensor(storage, dtype, offset, shape, strides)
    raise FormatError("it rebuilds a tensor from something else than a storage, offset, size and stride")


def _rebuild_tensor_with_dtype(arguments: tuple[Any, ...]) -> StoredTensor:
    """torch._utils._rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])"""
    match arguments:
        case (Storage(_, None, _) as storage, offset, shape, strides, bool(), _, Dtype(dtype), *_):
            return _stored_tensor(storage, dtype, offset, shape, strides)
    raise FormatError("it rebuilds a tensor from something else than a storage, offset, size, stride and dtype")


def _stored_tensor(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    if type(offset) is not int or type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise FormatError("a tensor's offset, size and stride are no numbers, or not as many")
    if offset < 0 or any(type(stride) is not int or stride < 0 for stride in strides):
        raise FormatError("a tensor's offset and strides are not all whole numbers from 0 on")
    return StoredTensor(storage, dtype, offset, shape, strides)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)"""
    match arguments:
        case (StoredTensor() as tensor, bool(), _):
            return tensor
    raise FormatError("it rebuilds a parameter from something else than a tensor")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """collections.OrderedDict(): torch fills it afterwards."""
    if arguments != ():
        raise FormatError("it makes an OrderedDict from something; expected an empty one")
    return {}


_STORAGE_TYPES = dict(Float="F32", Half="F16", BFloat16="BF16", Double="F64", ComplexFloat="C64", ComplexDouble="C128")
_STORAGE_TYPES |= dict(Long="I64", Int="I32", Short="I16", Char="I8", Byte="U8", Bool="BOOL")
_DTYPES = dict(float32="F32", float16="F16", bfloat16="BF16", float64="F64", complex64="C64", complex128="C128")
_DTYPES |= dict(int8="I8", int16="I16", int32="I32", int64="I64", bool="BOOL")
_DTYPES |= dict(uint8="U8", uint16="U16", uint32="U32", uint64="U64")
_DTYPES |= dict(float8_e4m3fn="F8_E4M3", float8_e5m2="F8_E5M2", float8_e8m0fnu="F8_E8M0")
_DTYPES |= dict(float8_e4m3fnuz="F8_E4M3FNUZ", float8_e5m2fnuz="F8_E5M2FNUZ")
NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Function(_ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Function(_rebuild_tensor_with_dtype),
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("torch.storage", "UntypedStorage"): StorageType(None),
    **{("torch", f"{name}Storage"): StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()},
    **{("torch", name): Dtype(dtype) for name, dtype in _DTYPES.items()},
}
