"""The tensors of a PyTorch file: a zip archive of storages, and a pickle that says what each tensor takes of them.

NAME/data.pkl    the pickle: {tensor name: _rebuild_tensor_v2(storage, offset, size, stride, ...)}
NAME/data/KEY    the bytes of storage KEY, as they are
NAME/byteorder   "little" (older files lack it)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FileProblem, FormatError, UnsupportedError
from edgellm.formats.gguf.header import quoted
from edgellm.formats.mapped import BITS, WEIGHT_DTYPES, Contents, PlainArray, count_elements, map_file, view_tensor
from edgellm.formats.pytorch.archive import LOCAL_MAGIC, Member, read_archive
from edgellm.formats.pytorch.pickle_reader import PickleReader
from edgellm.formats.pytorch.rebuild import NAMES, StoredTensor, find_storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tensors whose numbers lie apart from each other (a transposed matrix) are copied, of all of them at most this.
MAX_COPIED_BYTES = 256 << 20
MAX_PICKLE = 64 << 20
MAX_BYTE_ORDER = 16

PICKLE, BYTE_ORDER, STORAGES = "data.pkl", "byteorder", "data/"

_RESAVE = "save it again with a PyTorch since 1.6: torch.save(torch.load(FILE, weights_only=True), NEW)"


def read_pytorch(path: Path) -> Contents:
    """The tensors of a state dict, or of the one state dict inside ({"model": ...}), in its order.

    Views of the mapped file; a tensor that is not contiguous is copied. Entries that are no tensors are left out.
    FileProblem when the file is missing or unreadable; FormatError when it breaks the rules of zip, pickle or torch,
    or when it needs a name from Python that tables of weights do not, which would run code; UnsupportedError for
    files from before PyTorch 1.6, compressed ones, and large tensors that are not contiguous.
    """
    data = map_file(path, "a PyTorch file")
    try:
        members, found = _read_state_dict(data)
        return _view_all(data, members, found)
    except FileProblem as problem:
        raise type(problem)(f"{path}: {problem}") from None


def _read_state_dict(data: NDArray[np.uint8]) -> tuple[dict[str, Member], dict[str, StoredTensor]]:
    """The archive's storages by key, and the tensors by name."""
    if data[: len(LOCAL_MAGIC)].tobytes() != LOCAL_MAGIC:
        if data[0] == 0x80:  # a bare pickle
            raise UnsupportedError(f"it has the form from before PyTorch 1.6; {_RESAVE}")
        raise FormatError(f"not a PyTorch file: it starts with {data[:4].tobytes()!r}, expected {LOCAL_MAGIC!r}")
    members = read_archive(data)
    pickles = [name for name in members if name.endswith("/" + PICKLE)]
    if len(pickles) != 1:
        raise FormatError(f"its zip archive holds {len(pickles)} entries {PICKLE}; a PyTorch file has one")
    prefix = pickles[0].removesuffix(PICKLE)

    if (order := members.get(prefix + BYTE_ORDER)) and _content(data, order, MAX_BYTE_ORDER) != b"little":
        raise UnsupportedError("its byte order is not little, as of this machine; save it again on one like this")
    storages = prefix + STORAGES
    found = PickleReader(_content(data, members[pickles[0]], MAX_PICKLE), NAMES, find_storage).read()
    keys = {name.removeprefix(storages): member for name, member in members.items() if name.startswith(storages)}
    return keys, _tensors_by_name(found)


def _content(data: NDArray[np.uint8], member: Member, most: int) -> bytes:
    if member.size > most:
        raise FormatError(f"it holds a zip entry of {member.size} bytes where edgellm reads at most {most}")
    return data[member.start : member.start + member.size].tobytes()


def _tensors_by_name(found: Any) -> dict[str, StoredTensor]:
    """The mapping of names to tensors that `found` is, or the single one that it holds."""

    def tensors_in(value: Any) -> dict[Any, StoredTensor]:
        if type(value) is not dict:
            return {}
        return {name: tensor for name, tensor in value.items() if type(tensor) is StoredTensor}

    if type(found) is not dict:
        raise FormatError("its pickle is no mapping of names to tensors")
    inner = {key: tensors for key, value in found.items() if (tensors := tensors_in(value))}
    if len(inner) > 1:
        listed = ", ".join(quoted(str(key)) for key in list(inner)[:8])
        raise FormatError(f"it holds several mappings of names to tensors: {listed}; save the model's alone")
    ((_, tensors),) = inner.items() if inner else [("", tensors_in(found))]
    if not tensors:
        raise FormatError("it holds no mapping of names to tensors")
    if any(type(name) is not str for name in tensors):
        raise FormatError("it names a tensor by a number; expected a text")
    return tensors


def _view_all(data: NDArray[np.uint8], members: dict[str, Member], found: dict[str, StoredTensor]) -> Contents:
    contents = Contents({}, {}, len(data))
    to_copy = MAX_COPIED_BYTES
    for name, tensor in found.items():
        try:
            size = _check_bounds(tensor, members)
            if tensor.dtype not in WEIGHT_DTYPES:
                contents.others[name] = tensor.dtype
                if BITS[tensor.dtype] % 8 == 0 and _is_contiguous(tensor):
                    member, item = members[tensor.storage.key], BITS[tensor.dtype] // 8
                    raw = data[member.start : member.start + member.size][tensor.offset * item :][:size]
                    contents.plain[name] = PlainArray(tensor.dtype, tensor.shape, raw)
                continue
            if not (contiguous := _is_contiguous(tensor)):
                to_copy -= size
                if to_copy < 0:
                    limit = MAX_COPIED_BYTES >> 20
                    raise UnsupportedError(
                        f"it is not contiguous, and edgellm copies at most {limit} MiB of such tensors; "
                        "save it again after .contiguous()"
                    )
            member = members[tensor.storage.key]
            raw = data[member.start : member.start + member.size]
            item = BITS[tensor.dtype] // 8
            raw = raw[tensor.offset * item :][:size] if contiguous else _gather(tensor, raw, item)
            contents.tensors[name] = view_tensor(name, tensor.shape, tensor.dtype, raw)
        except FileProblem as problem:
            raise type(problem)(f"tensor {quoted(name)}: {problem}") from None
    return contents


def _check_bounds(tensor: StoredTensor, members: dict[str, Member]) -> int:
    """The bytes of a tensor all whose numbers lie in its storage, and whose storage the archive holds whole."""
    storage = tensor.storage
    n_elements = count_elements(tensor.shape)
    if storage.key not in members:
        raise FormatError(f"its storage {quoted(storage.key)} is missing in the zip archive")
    item = BITS[tensor.dtype] // 8
    n_bytes = storage.size if storage.dtype is None else storage.size * item
    if (held := members[storage.key].size) != n_bytes:
        raise FormatError(f"its storage {quoted(storage.key)} should have {n_bytes} bytes, but has {held}")
    if n_elements == 0:
        return 0
    last = tensor.offset + sum((dim - 1) * stride for dim, stride in zip(tensor.shape, tensor.strides, strict=True))
    if (last + 1) * item > n_bytes:
        raise FormatError(f"it reaches to number {last} of a storage that has {n_bytes // item}")
    if n_elements * item > n_bytes:
        raise UnsupportedError("it is expanded, its numbers stand for several; save it again after .contiguous()")
    return n_elements * item


def _is_contiguous(tensor: StoredTensor) -> bool:
    if 0 in tensor.shape:
        return True
    expected = 1
    for dim, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if dim != 1 and stride != expected:
            return False
        expected *= dim
    return True


def _gather(tensor: StoredTensor, storage: NDArray[np.uint8], item: int) -> NDArray[np.uint8]:
    """A tensor's numbers side by side, uint8[n_bytes]; those of `storage` lie at its strides."""
    # A dimension of 1 may have any stride, even one beyond what NumPy can hold.
    strides = [stride * item if dim > 1 else 0 for dim, stride in zip(tensor.shape, tensor.strides, strict=True)]
    numbers: NDArray[np.unsignedinteger] = np.ndarray(tensor.shape, f"<u{item}", storage, tensor.offset * item, strides)
    copied = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    copied.flags.writeable = False
    return copied
