"""The weights of a trained checkpoint: a folder with safetensors or PyTorch files, whole or in shards."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

from edgellm.errors import FileProblem, FormatError
from edgellm.formats.gguf.header import quoted
from edgellm.formats.mapped import Contents, PlainArray, map_file
from edgellm.formats.pytorch import read_pytorch
from edgellm.formats.safetensors import read_safetensors
from edgellm.formats.strict_json import parse_object
from edgellm.formats.tensor import Tensor

MAX_LISTED = 8  # names in an error line

# Weights in other forms that people have, and what to do with them.
_HINTS = {
    "*.gguf": "a GGUF file is converted already: give its path itself",
    "consolidated*.pth": "consolidated.*.pth are Meta's original weights: take the Hugging Face form",
    "consolidated*.safetensors": "consolidated.safetensors is Mistral's own form: take the Hugging Face form",
    "adapter_model.*": "it holds an adapter, not a model: its base model is another folder",
    "*-of-*.safetensors": "the shards' index, a file ending in .index.json, is missing",
    "*-of-*.bin": "the shards' index, a file ending in .index.json, is missing",
}


class Checkpoint:
    """Open weights. Close it, or use it in a `with`.

    path:     the file that was opened; with shards, their index.
    tensors:  by name, in the files' order; F32, F16 and BF16, as views of the mapped files.
    others:   name -> type (I64, BOOL, F64, F8_E4M3, ...) of the tensors that are no weights.
    plain:    those of them that can be read, as views too.
    n_bytes:  size on disk, of all shards.
    """

    def __init__(self, path: Path, shards: list[Contents]) -> None:
        self.path = path
        self.tensors: Mapping[str, Tensor] = MappingProxyType(_merged([shard.tensors for shard in shards]))
        self.others: Mapping[str, str] = MappingProxyType(_merged([shard.others for shard in shards]))
        self.plain: Mapping[str, PlainArray] = MappingProxyType(_merged([shard.plain for shard in shards]))
        self.n_bytes = sum(shard.n_bytes for shard in shards)

    def close(self) -> None:
        """Close the files. A mapping itself goes with the last array that was taken from it."""
        self.tensors, self.others, self.plain = {}, {}, {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path} with {len(self.tensors)} tensors>"


def open_checkpoint(folder: Path, stem: str = "model") -> Checkpoint:
    """The weights in a folder: STEM.safetensors, its shards by their index, or the same as PyTorch's `.bin`.

    Stem "model" is a model (its `.bin` is called pytorch_model), "adapter_model" a PEFT adapter.
    FileProblem when the folder holds no such file or lacks a shard; FormatError and UnsupportedError as
    `read_safetensors` and `read_pytorch` raise them, and when an index and its shards do not agree.
    """
    bin_stem = "pytorch_model" if stem == "model" else stem
    candidates = {
        f"{stem}.safetensors": read_safetensors,
        f"{stem}.safetensors.index.json": read_safetensors,
        f"{bin_stem}.bin": read_pytorch,
        f"{bin_stem}.bin.index.json": read_pytorch,
    }
    for name, read in candidates.items():
        path = folder / name
        # A link that leads nowhere (an unfinished download) shall be named, not passed over.
        if os.path.lexists(path):
            return _open_shards(path, read) if name.endswith(".json") else Checkpoint(path, [read(path)])
    raise FileProblem(_what_is_there(folder, list(candidates)))


def _open_shards(index: Path, read: Callable[[Path], Contents]) -> Checkpoint:
    data = map_file(index, "a shard index")
    try:
        shard_of = _read_index(parse_object(data), index.name.removesuffix(".index.json"))
    except FileProblem as problem:
        raise type(problem)(f"{index}: {problem}") from None
    names = sorted(set(shard_of.values()))
    if missing := [name for name in names if not os.path.exists(index.parent / name)]:
        raise FileProblem(f"{index.parent} lacks {len(missing)} of {len(names)} shards: {_listed(missing)}")
    shards = {name: read(index.parent / name) for name in names}
    found: dict[str, str] = {}
    for shard, contents in shards.items():
        for tensor in (*contents.tensors, *contents.others):
            if tensor in found:
                raise FormatError(f"{index}: tensor {quoted(tensor)} is in two shards, {found[tensor]} and {shard}")
            found[tensor] = shard
    for tensor, shard in shard_of.items():
        if found.get(tensor) != shard:
            raise FormatError(f"{index}: it says that tensor {quoted(tensor)} is in {shard}, which does not hold it")
    return Checkpoint(index, list(shards.values()))


def _read_index(index: dict[str, Any], whole: str) -> dict[str, str]:
    """Tensor name -> shard, a plain file name with the ending of the `whole` file's name."""
    shard_of = index.get("weight_map")
    if type(shard_of) is not dict or not shard_of:
        raise FormatError("its weight_map is missing, empty or no object")
    ending = Path(whole).suffix
    if not all(type(shard) is str for shard in shard_of.values()):
        raise FormatError("its weight_map maps a tensor to something else than a file's name")
    for shard in sorted(set(shard_of.values())):
        if not _is_plain_name(shard) or not shard.endswith(ending):
            raise FormatError(f"it names {quoted(shard)} as a shard; expected the name of a {ending} file beside it")
    return shard_of


def _is_plain_name(name: str) -> bool:
    """Whether a name is one of a file in the same folder, on every system; Windows knows all separators."""
    return name.isprintable() and name not in ("", "..") and PureWindowsPath(name).name == name


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def _what_is_there(folder: Path, expected: list[str]) -> str:
    """The error line for a folder that holds none of the expected files."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return f"{folder} does not exist; expected a folder with {expected[0]}"
    except NotADirectoryError:
        return f"{folder} is not a folder; expected one with {expected[0]}"
    except OSError as problem:
        return f"{folder} cannot be read: {problem.strerror}"
    found = f"it holds {_listed(names)}" if names else "it is empty"
    hints = [hint for pattern, hint in _HINTS.items() if fnmatch.filter(names, pattern)]
    return f"{folder} has no {', '.join(expected[:-1])} or {expected[-1]}; {'; '.join([found, *hints[:1]])}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(quoted, names[:MAX_LISTED])) + more
