"""What is in a GGUF file, as lines of text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from edgellm.cli.terminal import size_text
from edgellm.errors import FileProblem
from edgellm.files import tile_files
from edgellm.formats.gguf import GGUFFile

_ELEMENTS_SHOWN = 6
_TEXT_SHOWN = 100  # characters


def describe_file(path: Path) -> Iterator[str]:
    """Metadata, tensors and totals. Raises what `GGUFFile.open` raises."""
    with GGUFFile.open(path) as file:
        n_weights = sum(prod(tensor.shape) for tensor in file.tensors.values())
        yield f"{path}: GGUF version {file.version}, {size_text(file.n_bytes)}"
        yield ""
        yield f"metadata, {len(file.metadata)} keys"
        width = max(map(len, file.metadata), default=0)
        for key, value in file.metadata.items():
            yield f"  {key:{width}}  {value_text(value)}"
        yield from _recommended(file)
        yield ""
        yield f"tensors, {len(file.tensors)}"
        rows = [
            (name, " x ".join(map(str, tensor.shape)), tensor.format.name, size_text(tensor.n_bytes))
            for name, tensor in file.tensors.items()
        ]
        wide = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
        for name, shape, format_name, size in rows:
            yield f"  {name:{wide[0]}}  {shape:>{wide[1]}}  {format_name:{wide[2]}}  {size:>{wide[3]}}"
        yield ""
        yield f"total {n_weights:,} weights: {_by_format(file)}"
        if tiles := tile_files.bytes_of(path):
            yield f"tiles of it, which it is run from: {size_text(tiles)}, {tile_files.path_of(path)}"


def _recommended(file: GGUFFile) -> Iterator[str]:
    """How tokens are chosen unless somebody says otherwise, where the file says so."""
    from edgellm.engine.recommended import recommended_sampling

    settings, notes = recommended_sampling(file.metadata)
    if settings:
        shown = (
            (name, "; ".join(value) if isinstance(value, tuple) else f"{value:g}") for name, value in settings.items()
        )
        yield ""
        yield f"recommended sampling: {', '.join(f'{name} {value}' for name, value in shown)}"
    for note in notes:
        yield f"note: {note}"


def describe_values(path: Path) -> Iterator[str]:
    """The values inside a model, and what makes each, in the order in which they are computed.

    Raises what `edgellm.load` raises for a file that cannot be run.
    """
    from edgellm.arch import architecture_of

    with GGUFFile.open(path) as file:
        try:
            architecture = architecture_of(file.metadata)
            values = architecture.record(architecture.configure(file.metadata), file.tensors).values
        except FileProblem as problem:
            raise type(problem)(f"{path}: {problem}") from None
        yield f"{path}: {len(values)} values, float32 [tokens, width]"
        yield ""
        wide = max(map(len, values))
        for name, value in values.items():
            made_by = value.node.kind if value.node else "input"
            yield f"  {name:{wide}}  {value.width:8}  {made_by}"


def value_text(value: Any) -> str:
    """A metadata value in one line; long texts and arrays are abridged."""
    if isinstance(value, str):
        if len(value) <= _TEXT_SHOWN:
            return value
        return f"{value[:_TEXT_SHOWN]}… ({len(value):,} characters)"
    if isinstance(value, bool | int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return _array_text(value)


def _array_text(values: Sequence[Any]) -> str:
    # NumPy scalars print as bare numbers; strings keep their quotes so that spaces can be seen.
    first = [repr(v) if isinstance(v, str) else str(v) for v in islice(values, _ELEMENTS_SHOWN)]
    if len(values) <= _ELEMENTS_SHOWN:
        return f"[{', '.join(first)}]"
    return f"[{', '.join(first)}, …] ({len(values):,} elements)"


def _by_format(file: GGUFFile) -> str:
    sizes: dict[str, int] = defaultdict(int)
    for tensor in file.tensors.values():
        sizes[tensor.format.name] += tensor.n_bytes
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {size_text(size)}" for name, size in ordered) or "none"
