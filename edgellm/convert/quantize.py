"""A GGUF file into a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm import checks
from edgellm.convert.checked import is_runnable, runs_again
from edgellm.convert.linears import is_linear
from edgellm.convert.parts import Part
from edgellm.convert.recipes import (
    QUANTIZATION_VERSION,
    RECIPES,
    Recipe,
    choose_formats,
    recipe_of,
    renamed,
    true_recipe,
)
from edgellm.convert.targets import check_target
from edgellm.convert.writer import write_model
from edgellm.errors import EdgellmError, FileProblem, FormatError, UsageError
from edgellm.files import AnyPath
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.imatrix import KIND as IMATRIX
from edgellm.quants import BlockFormat
from edgellm.quants.floats import FloatFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Quantized:
    """What was written.

    n_bytes:    its size; that of the source, all parts of it, was n_bytes_before.
    formats:    of every tensor. type_name: what the file calls itself, see `recipes.true_recipe`.
    notes:      the tensors that got another type than the recipe has for them, and why.
    warnings:   what a person should know: that a file is not what was asked for, or could be better.
    """

    path: Path
    n_bytes: int
    n_bytes_before: int
    bits_per_weight: float
    formats: Mapping[str, BlockFormat]
    warnings: Sequence[str]
    type_name: str
    notes: Sequence[str] = ()


def quantize_file(
    source: AnyPath,
    target: AnyPath,
    type_name: str,
    *,
    overrides: Sequence[str] = (),
    importance: Mapping[str, NDArray[Any]] | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Write `target` with the weights of `source` in the types of a recipe.

    type_name, overrides:  see `recipes`. importance: mean squared inputs by tensor, see `formats.imatrix`.

    Raises FileProblem, FormatError (a tensor that holds NaN), UsageError (an unknown type, OUT equal to IN).
    """
    source, target = checks.path("source", source), checks.path("target", target)
    overrides, progress = checks.texts("overrides", overrides), checks.function("progress", progress)
    if importance is not None and not isinstance(importance, Mapping):
        raise checks.wrong("importance", importance, "a dict of mean squares by tensor")
    recipe = recipe_of(checks.text("type_name", type_name))
    with open_model(source, target) as file:
        if file.get("general.type", str, "model") == "adapter" and not recipe.is_float:
            raise UsageError(f"{source} is an adapter, which is kept in floats, not in {recipe.name}")
        parts = parts_of(file)
        try:
            formats = choose_formats(recipe, parts, file.metadata, overrides)
        except FormatError as problem:
            raise FormatError(f"{source}: {problem}") from None
        done = write_quantized(file, target, formats, true_recipe(recipe, parts, formats), importance=importance,
                               n_threads=n_threads, progress=progress)  # fmt: skip
        warnings = [*renamed(recipe, done.type_name), *done.warnings]
        return replace(done, notes=formats.told(), warnings=warnings)


def open_model(source: Path, target: Path) -> GGUFFile:
    """The file to be quantized. UsageError when it would be written over or is none, FileProblem when nothing can be
    written.
    """
    check_target(target)
    file = GGUFFile.open(source)
    try:
        check_target(target, file.paths)
        if file.get("general.type", str, "model") == IMATRIX:
            raise UsageError(f"{source} is an importance matrix; quantize its model, with this as --imatrix")
    except EdgellmError:
        file.close()
        raise
    return file


def parts_of(file: GGUFFile) -> list[Part]:
    """The file's tensors, as they are."""
    if not file.tensors:
        raise FileProblem(f"{file.path} holds no tensors")
    return [Part(name, tensor) for name, tensor in file.tensors.items()]


def foreseen_bytes(source: Path, type_name: str | None = None) -> int:
    """What the tensors of a model would take in a file of another type, or of every tensor's own.

    Raises FileProblem or FormatError for a file that is no model, UsageError for no type.
    """
    recipe = None if type_name is None else recipe_of(type_name)
    with GGUFFile.open(source) as file:
        parts = parts_of(file)
        formats = choose_formats(recipe, parts, file.metadata)
        return sum(part.n_rows * formats[part.name].row_bytes(part.n_cols) for part in parts)


def write_quantized(
    file: GGUFFile,
    target: Path,
    formats: Mapping[str, BlockFormat],
    recipe: Recipe | None,
    *,
    parts: Sequence[Part] | None = None,
    importance: Mapping[str, NDArray[Any]] | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Write `target` with every tensor in its format.

    recipe:  what the file calls itself; None for what it called itself before.
    parts:   other tensors than those of the file.
    """
    parts = parts_of(file) if parts is None else parts
    check_importance(importance or {}, parts)
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
    if recipe is not None:
        metadata |= {"general.quantization_version": QUANTIZATION_VERSION} | recipe.metadata
    check = runs_again if is_runnable(file.metadata, file.tensors) else None
    write_model(target, metadata, parts, formats, importance=importance, n_threads=n_threads, progress=progress,
                check=check)  # fmt: skip
    n_bytes = sum(part.n_rows * formats[part.name].row_bytes(part.n_cols) for part in parts)
    n_weights = sum(prod(part.tensor.shape) for part in parts)
    warnings = [*_requantized(parts, formats), *_without_importance(importance, parts, formats)]
    name = recipe.name if recipe else true_recipe(RECIPES["F16"], parts, formats).name
    return Quantized(target, target.stat().st_size, file.n_bytes, 8 * n_bytes / n_weights, formats, warnings, name)


def check_importance(importance: Mapping[str, NDArray[Any]], parts: Sequence[Part]) -> None:
    """Raise UsageError for an importance matrix that was made for a model of other shapes."""
    by_name = {part.name: part for part in parts}
    for name, values in importance.items():
        part = by_name.get(name)
        if part and values.size not in (part.n_cols, part.n_cols * part.n_matrices):
            raise UsageError(
                f"the importance matrix has {values.size} columns for {name}, which has {part.n_cols}; "
                "it was made for another model"
            )
    if importance and not any(name in by_name for name in importance):
        raise UsageError("the importance matrix names none of this model's tensors; it was made for another model")


def _requantized(parts: Sequence[Part], formats: Mapping[str, BlockFormat]) -> list[str]:
    again = {
        str(part.tensor.format)
        for part in parts
        if formats[part.name] is not part.tensor.format
        and not isinstance(part.tensor.format, FloatFormat)
        and not isinstance(formats[part.name], FloatFormat)
    }
    if not again:
        return []
    return [f"weights were quantized before ({', '.join(sorted(again))}); quantizing the original loses less"]


def _without_importance(
    importance: Mapping[str, NDArray[Any]] | None, parts: Sequence[Part], formats: Mapping[str, BlockFormat]
) -> list[str]:
    """What is to be said of a matrix that is not quite of this model: tensors of one that the other does not have."""
    if not importance:
        return []
    told = []
    by_name = {part.name: part for part in parts}
    # llama.cpp collects nothing of the embedding, and nobody anything of the head unless asked.
    layers = [part for part in parts if part.name.startswith("blk.") and is_linear(part)]
    quantized = [part for part in layers if not isinstance(formats[part.name], FloatFormat)]
    if missing := [part.name for part in quantized if part.name not in importance]:
        told.append(
            f"the importance matrix says nothing of {len(missing)} of {len(quantized)} quantized matrices in layers, "
            f"{missing[0]} first: they are quantized without"
        )
    if strange := [name for name in importance if name not in by_name and name.startswith("blk.")]:
        told.append(
            f"the importance matrix has {len(strange)} tensors that this model does not have, {strange[0]} first; it "
            "may be of another model"
        )
    return told
