"""The matrices of experts, however a checkpoint keeps them, as the stacks that GGUF has: [n_experts, n_out, n_in].

Nothing is copied before it is written: a part reads the rows that it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch.huggingface import Experts, HuggingFace
from edgellm.convert.parts import Part
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.tensor import Tensor

Read = Callable[[slice], NDArray[np.uint8]]


def take_experts(
    family: HuggingFace, n_layers: int, n_experts: int, tensors: dict[str, Tensor]
) -> tuple[list[Part], dict[str, str]]:
    """The stacks of all layers that have experts, and what the checkpoint calls each; their tensors are taken out.

    Raises FormatError for a number of experts that is not the one that config.json gives.
    """
    parts: list[Part] = []
    theirs: dict[str, str] = {}
    shared: set[str] = set()  # tensors of which several parts are made
    for layer in range(n_layers):
        for ours, place in family.experts.items():
            for kind in ("weight", "bias"):
                name = f"{ours.format(layer)}.{kind}"
                split = place.split and place.split.replace("{}", str(layer), 1) + f".{kind}"
                whole = place.stacked.format(layer) + ("_bias" if kind == "bias" else "")
                whole = next((found for found in (whole, f"{whole}.weight") if found in tensors), None)
                if whole is not None:
                    theirs[name] = whole
                    shared.add(whole)
                    parts.append(_of_stack(name, tensors[whole], place, n_experts, kind == "bias"))
                elif split and (found := _split(split, n_experts, tensors)):
                    theirs[name] = split.format("*")
                    parts.append(_stacked(name, found))
    for name in shared:
        del tensors[name]
    return parts, theirs


def _split(pattern: str, n_experts: int, tensors: dict[str, Tensor]) -> list[Tensor]:
    """The matrices of all experts, or nothing where there is none."""
    names = [pattern.format(expert) for expert in range(n_experts)]
    found = [name for name in names if name in tensors]
    if not found:
        return []
    says = f"config.json says that there are {n_experts} experts"
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
            pieces.append(tensors[expert].raw.reshape(n_rows, -1)[start:stop])
        return np.concatenate(pieces)

    return _part(name, first, (len(tensors), *first.shape), read)


def _of_stack(name: str, tensor: Tensor, place: Experts, n_experts: int, is_bias: bool) -> Part:
    """Some rows of every matrix of a stack, or columns where matrices stand across."""
    is_across = place.is_across and not is_bias
    shape = (
        (tensor.shape[0], tensor.shape[2], tensor.shape[1]) if is_across and len(tensor.shape) == 3 else tensor.shape
    )
    n_dims = 2 if is_bias else 3
    if len(shape) != n_dims or shape[0] != n_experts or shape[1] % place.n_parts:
        raise FormatError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)}; config.json says that it has {n_experts} experts"
        )
    if tensor.format.block_size != 1:
        raise UnsupportedError(f"tensor {tensor.name!r} is {tensor.format}; experts are converted from floats")
    size = tensor.format.block_bytes
    n_rows = shape[1] // place.n_parts
    numbers = tensor.raw.reshape(*tensor.shape, size)
    if is_across:
        numbers = numbers.swapaxes(1, 2)
    # Of parts, rows alternate or follow each other.
    of_part = (
        slice(place.part, None, place.n_parts)
        if place.is_across
        else slice(place.part * n_rows, (place.part + 1) * n_rows)
    )
    chosen = numbers[:, of_part]
    if is_bias:
        return Part(
            name,
            Tensor(
                tensor.name, (n_experts, n_rows), tensor.format, np.ascontiguousarray(chosen).reshape(n_experts, -1)
            ),
        )

    def read(rows: slice) -> NDArray[np.uint8]:
        at = np.arange(rows.start, rows.stop)
        return np.ascontiguousarray(chosen[at // n_rows, at % n_rows]).reshape(len(at), -1)

    return _part(name, tensor, (n_experts, n_rows, shape[2]), read)


def _part(name: str, like: Tensor, shape: tuple[int, ...], read: Read) -> Part:
    """A part whose rows `read` gives; the tensor beside it says what they are, and has no bytes of its own."""
    row_bytes = like.format.row_bytes(shape[-1])
    nothing: Any = np.broadcast_to(np.zeros(1, np.uint8), (int(np.prod(shape[:-1])), row_bytes))
    return Part(name, Tensor(like.name, shape, like.format, nothing), read=read)


def unstacked(family: HuggingFace, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The way back: the matrices of a stack by the checkpoint's names. UnsupportedError where it has no such names."""
    prefix, layer, part, kind = _named(name)
    place = family.experts[f"{prefix}.{{}}.{part}"]
    if place.split is None or kind != "weight":
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
