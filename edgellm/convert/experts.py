"""The matrices of experts, however a checkpoint keeps them, as the stacks that GGUF has: [n_experts, n_out, n_in].

Nothing is copied before it is written: a part reads the rows that it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch import ModelConfig
from edgellm.arch.huggingface import HuggingFace, Settings
from edgellm.arch.mixture import said_experts
from edgellm.arch.stacks import Experts, KeysOrValues, SomeRows
from edgellm.convert.parts import Part
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.tensor import Tensor

Place = Experts | KeysOrValues | SomeRows
Read = Callable[[slice], NDArray[np.uint8]]


def take_experts(
    family: HuggingFace, settings: Settings, config: ModelConfig, tensors: dict[str, Tensor]
) -> tuple[list[Part], dict[str, str]]:
    """The stacks of all layers that have some, and what the checkpoint calls each; their tensors are taken out.

    Raises FormatError for a number of experts that is not the one that config.json gives.
    """
    parts: list[Part] = []
    theirs: dict[str, str] = {}
    done: set[str] = set()  # tensors of which several parts may be made
    n_experts = config.mixture.n_experts if config.mixture is not None else 0
    says = f"in config.json, {said_experts(settings)}" if n_experts else "config.json says that there are no experts"
    for layer in range(config.n_layers):
        for ours, place in family.experts.items():
            for kind in ("weight", "bias"):
                name = f"{ours.format(layer)}.{kind}"
                whole = next((found for found in _wholes(place, layer, kind) if found in tensors), None)
                split = _split_name(place, layer, kind)
                if whole is not None:
                    part = _of_whole(name, tensors[whole], place, config, kind == "bias", says)
                elif split and (found := _split(split, n_experts, tensors, says)):
                    part = _stacked(name, found)
                else:
                    continue
                done |= {whole} if whole is not None else set()
                theirs[name] = whole or (split or "").format("*")
                parts.append(part)
    for name in done:
        del tensors[name]
    return parts, theirs


def _wholes(place: Place, layer: int, kind: str) -> tuple[str, ...]:
    """Names that the tensor may have of which a stack is made."""
    if not isinstance(place, Experts):
        return (f"{place.name.format(layer)}.weight",) if kind == "weight" else ()
    stacked = place.stacked.format(layer)
    return (f"{stacked}_bias",) if kind == "bias" else (stacked, f"{stacked}.weight")


def _split_name(place: Place, layer: int, kind: str) -> str | None:
    """The names of single experts, with a place for each one's number."""
    if not isinstance(place, Experts) or place.split is None:
        return None
    return place.split.replace("{}", str(layer), 1) + f".{kind}"


def _split(pattern: str, n_experts: int, tensors: dict[str, Tensor], says: str) -> list[Tensor]:
    """The matrices of all experts, or nothing where there is none."""
    names = [pattern.format(expert) for expert in range(n_experts)]
    found = [name for name in names if name in tensors]
    if not found:
        return []
    if missing := [name for name in names if name not in tensors]:
        raise FormatError(f"the checkpoint has no tensor {missing[0]!r}, and {says}")
    if (beyond := pattern.format(n_experts)) in tensors:
        raise FormatError(f"the checkpoint has tensor {beyond!r}, and {says}")
    first = tensors[names[0]]
    for name in names:
        tensor = tensors[name]
        if tensor.shape != first.shape or tensor.format is not first.format:
            raise FormatError(
                f"tensor {name!r} is {tensor.format} of shape {list(tensor.shape)}, and {names[0]!r} {first.format} of "
                f"shape {list(first.shape)}; expected experts of one kind"
            )
    return [tensors.pop(name) for name in names]


def _stacked(name: str, tensors: Sequence[Tensor]) -> Part:
    """Tensors one behind the other."""
    first = tensors[0]
    n_rows = int(np.prod(first.shape[:-1]))

    def read(rows: slice) -> NDArray[np.uint8]:
        pieces = []
        for expert in range(rows.start // n_rows, -(-rows.stop // n_rows)):
            start, stop = max(0, rows.start - expert * n_rows), min(n_rows, rows.stop - expert * n_rows)
            pieces.append(tensors[expert].some_rows(slice(start, stop)))
        return np.concatenate(pieces)

    return _part(name, first, (len(tensors), *first.shape), read)


def _of_whole(name: str, tensor: Tensor, place: Place, c: ModelConfig, is_bias: bool, says: str) -> Part:
    """Some rows of every matrix of a tensor. Raises FormatError for a shape that is not the one of config.json."""
    if isinstance(place, SomeRows):
        return _of_rows(name, tensor, place, c)
    if tensor.format.block_size != 1:
        return _of_blocks(name, tensor, place, c, says)
    if isinstance(place, KeysOrValues):
        numbers = _of_keys_or_values(tensor, place, c)
    else:
        numbers = _of_experts(tensor, place, c, is_bias, says)
    if is_bias:
        shape, raw = numbers.shape[:-1], np.ascontiguousarray(numbers)
        return Part(name, Tensor(tensor.name, shape, tensor.format, raw.reshape(len(raw), -1)))
    n_matrices, n_rows, n_cols, _ = numbers.shape

    def read(rows: slice) -> NDArray[np.uint8]:
        at = np.arange(rows.start, rows.stop)
        return np.ascontiguousarray(numbers[at // n_rows, at % n_rows]).reshape(len(at), -1)

    return _part(name, tensor, (n_matrices, n_rows, n_cols), read)


def _of_rows(name: str, tensor: Tensor, place: SomeRows, c: ModelConfig) -> Part:
    """Some rows of a matrix, in whatever format it is."""
    if len(tensor.shape) != 2 or tensor.shape[0] != place.n_all(c):
        raise FormatError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)}; config.json says that it has {place.n_all(c)} rows"
        )
    order = place.rows(c)
    return _part(name, tensor, (len(order), tensor.shape[1]), lambda rows: tensor.some_rows(order[rows]))


def _of_blocks(name: str, tensor: Tensor, place: Experts | KeysOrValues, c: ModelConfig, says: str) -> Part:
    """The same of weights that are quantized already: blocks lie along the inputs, so rows stay whole."""
    if isinstance(place, KeysOrValues):
        raise UnsupportedError(
            f"tensor {tensor.name!r} is {tensor.format}, and the two matrices that GGUF has of it lie otherwise "
            "than its blocks; choose a type, and it is made of the dequantized weights: --type Q8_0, or Q4_K_M"
        )
    _check_experts(tensor, c, 3, says)
    n_experts, n_all, n_cols = tensor.shape
    wanted = np.arange(n_all, dtype=np.int32)[_rows_of_part(tensor, place, n_all)]
    n_rows = len(wanted)

    def read(rows: slice) -> NDArray[np.uint8]:
        at = np.arange(rows.start, rows.stop, dtype=np.int32)
        return tensor.some_rows(at // n_rows * n_all + wanted[at % n_rows])

    return _part(name, tensor, (n_experts, n_rows, n_cols), read)


def _of_experts(tensor: Tensor, place: Experts, c: ModelConfig, is_bias: bool, says: str) -> NDArray[np.uint8]:
    """The numbers of a part, each its bytes: [n_experts, n_out, n_in, size], of biases without n_in."""
    _check_experts(tensor, c, 2 if is_bias else 3, says)
    numbers = tensor.raw.reshape(*tensor.shape, tensor.format.block_bytes)
    numbers = numbers.swapaxes(1, 2) if place.is_across and not is_bias else numbers
    return numbers[:, _rows_of_part(tensor, place, numbers.shape[1])]


def _check_experts(tensor: Tensor, c: ModelConfig, n_dims: int, says: str) -> None:
    """Raises FormatError for another number of experts than config.json says."""
    n_experts = c.mixture.n_experts if c.mixture is not None else 0
    if len(tensor.shape) != n_dims or tensor.shape[0] != n_experts:
        raise FormatError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)}; expected {n_experts} experts, for {says}"
        )


def _rows_of_part(tensor: Tensor, place: Experts, n_all: int) -> slice:
    """Which rows of every expert a part has: parts alternate, or follow each other. Raises FormatError."""
    n_rows, rest = divmod(n_all, place.n_parts)
    if rest:
        raise FormatError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)}; expected {place.n_parts} equal parts"
        )
    if place.is_across:
        return slice(place.part, None, place.n_parts)
    return slice(place.part * n_rows, (place.part + 1) * n_rows)


def _of_keys_or_values(tensor: Tensor, place: KeysOrValues, c: ModelConfig) -> NDArray[np.uint8]:
    """The same of one half of every head: of keys, [n_heads, kv_rank, n_plain, size], of values across."""
    m = c.latent
    assert m is not None
    shape = (c.n_heads * (m.n_plain + m.value_dim), m.kv_rank)
    if tensor.shape != shape:
        raise FormatError(f"tensor {tensor.name!r} has shape {list(tensor.shape)}; expected {list(shape)}")
    heads = tensor.raw.reshape(c.n_heads, m.n_plain + m.value_dim, m.kv_rank, tensor.format.block_bytes)
    return heads[:, m.n_plain :] if place.values else heads[:, : m.n_plain].swapaxes(1, 2)


def _part(name: str, like: Tensor, shape: tuple[int, ...], read: Read) -> Part:
    """A part whose rows `read` gives; the tensor beside it says what they are, and has no bytes of its own."""
    row_bytes = like.format.row_bytes(shape[-1])
    nothing: Any = np.broadcast_to(np.zeros(1, np.uint8), (int(np.prod(shape[:-1])), row_bytes))
    return Part(name, Tensor(like.name, shape, like.format, nothing), read=read)


def unstacked(family: HuggingFace, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The way back: the matrices of a stack by the checkpoint's names. UnsupportedError where it has no such names."""
    prefix, layer, part, kind = _named(name)
    place = family.experts[f"{prefix}.{{}}.{part}"]
    if not isinstance(place, Experts) or place.split is None or kind != "weight":
        raise UnsupportedError(
            f"{family.classes[0]} keeps {name!r} together with others, which export does not write yet"
        )
    matrices = tensor.raw.reshape(tensor.shape[0], tensor.shape[1], -1)
    pattern = place.split.replace("{}", layer, 1)
    return [
        (f"{pattern.format(expert)}.{kind}", Tensor(tensor.name, tensor.shape[1:], tensor.format, matrix))
        for expert, matrix in enumerate(matrices)
    ]


def is_stack(family: HuggingFace, name: str) -> bool:
    """Whether a tensor of GGUF is a stack of experts."""
    parts = name.split(".")
    return len(parts) == 4 and f"{parts[0]}.{{}}.{parts[2]}" in family.experts


def _named(name: str) -> tuple[str, str, str, str]:
    prefix, layer, part, kind = name.split(".")
    return prefix, layer, part, kind
