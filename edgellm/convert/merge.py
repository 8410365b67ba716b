"""Adapters merged into a model: what they add becomes part of the weights of a new file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm import checks
from edgellm.arch.adapters import read_adapter
from edgellm.convert.parts import Part
from edgellm.convert.quantize import Progress, Quantized, open_model, parts_of, write_quantized
from edgellm.convert.recipes import choose_formats, recipe_of, renamed, true_recipe
from edgellm.convert.targets import check_target, files_of
from edgellm.engine.adapter_set import refuse_two_wholes
from edgellm.errors import FormatError, UsageError
from edgellm.files import AnyPath
from edgellm.formats.adapters import Adapter, LowRank
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor
from edgellm.quants import BlockFormat
from edgellm.quants.floats import FloatFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


def merge_adapters(
    model: AnyPath,
    adapters: Mapping[Any, float] | Iterable[AnyPath | Adapter] | AnyPath | Adapter,
    target: AnyPath,
    type_name: str | None = None,
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Write `target`, a GGUF file that computes what `model` does with some adapters.

    adapters:   PEFT folders, GGUF adapters, or what `train` returned, one or several, which change the model one after
                the other; or their scales by path.
    type_name:  a recipe such as "Q4_K_M"; None keeps the type of every tensor.

    Raises FileProblem, FormatError or UnsupportedError for files that cannot be used or do not belong together,
    UsageError for a target or scales that cannot be; then no file is left at `target`.
    """
    source, target = checks.path("model", model), checks.path("target", target)
    scales = _scales([adapters] if isinstance(adapters, (str, os.PathLike, Adapter)) else adapters)
    progress = checks.function("progress", progress)
    recipe = None if type_name is None else recipe_of(checks.text("type_name", type_name))
    check_target(target, files_of(*(adapter for adapter in scales if isinstance(adapter, Path))))
    with open_model(source, target) as file:
        if file.get("general.type", str, "model") != "model":
            raise UsageError(
                f"{source} holds no model (general.type is {file.get('general.type', str)!r:.40}); adapters go into "
                "models"
            )
        found = [(_adapter_of(adapter, file), scale) for adapter, scale in scales.items()]
        for adapter, _ in found:
            adapter.refuse_score("merged")
            if adapter.method not in ("lora", "dora"):
                raise UsageError(
                    f"{adapter.name!r:.60} is an adapter of the kind {adapter.method!r}, which is no change of weights "
                    "and cannot be merged; run the model with it"
                )
        refuse_two_wholes(found)
        parts, changed = merged_parts(file, found)
        if recipe is None:
            formats: Mapping[str, BlockFormat] = {part.name: _own_format(file, part.name) for part in parts}
            done = write_quantized(file, target, formats, None, parts=parts, n_threads=n_threads, progress=progress)
            notes: list[str] = []
        else:
            chosen = choose_formats(recipe, parts, file.metadata)
            formats, notes = chosen, chosen.told()
            true = true_recipe(recipe, parts, chosen)
            done = write_quantized(file, target, chosen, true, parts=parts, n_threads=n_threads, progress=progress)
            notes += renamed(recipe, true.name)
        told = [line for adapter, _ in found for line in adapter.notes]
        return replace(done, notes=[*told, *notes], warnings=[*done.warnings, *_rounded_again(file, formats, changed)])


def merged_parts(file: GGUFFile, adapters: Sequence[tuple[Adapter, float]]) -> tuple[list[Part], set[str]]:
    """The tensors of the merged model, and the names of those that are not what the file has.

    Where embeddings serve as the output matrix too and only one of the two is changed, they become two tensors.
    """
    parts = {part.name: part for part in parts_of(file)}
    changed = {name for adapter, _ in adapters for name in (*adapter.weights, *adapter.replaced)}
    is_shared = all(adapter.shares_embedding for adapter, _ in adapters)
    if OUTPUT not in parts and changed & {EMBEDDING, OUTPUT} and not is_shared:
        parts[OUTPUT] = Part(OUTPUT, file.tensors[EMBEDDING])
    steps: dict[str, list[tuple[LowRank, float]]] = defaultdict(list)
    for adapter, scale in adapters:
        for name, x in adapter.replaced.items():
            if name in parts or not is_shared:
                parts[name] = Part(name, Tensor.of(name, x))
        for name, change in adapter.weights.items():
            steps[name].append((change, scale))
    for name, of_weight in steps.items():
        parts[name] = replace(parts[name], change=partial(_merged, of_weight))
    return list(parts.values()), changed & parts.keys()


def _adapter_of(adapter: Path | Adapter, file: GGUFFile) -> Adapter:
    """Of a folder or file, or as it is in memory, if it was made for this model."""
    if isinstance(adapter, Path):
        return read_adapter(adapter, file.metadata, file.tensors)
    adapter.check()
    adapter.check_fits(file.get("general.architecture", str), file.tensors)
    return adapter


def _scales(adapters: Any) -> dict[Path | Adapter, float]:
    """The scale of each, in their order; without those of 0, which change nothing."""
    if not isinstance(adapters, Iterable):
        raise checks.wrong("adapters", adapters, "adapters, or their scales by path")
    most = float(np.finfo(np.float32).max)
    pairs = adapters.items() if isinstance(adapters, Mapping) else [(path, 1.0) for path in adapters]
    found: dict[Path | Adapter, float] = {}
    for adapter, scale in pairs:
        place = adapter if isinstance(adapter, Adapter) else checks.path("adapters", adapter)
        if place in found:
            name = adapter.name if isinstance(adapter, Adapter) else place
            raise UsageError(
                f"adapters names {name} twice; give it once, with the scale that you want", parameter="adapters"
            )
        found[place] = checks.number("adapters", scale, -most, most)
    if not found:
        raise UsageError("adapters is empty; expected at least one", parameter="adapters")
    return {path: scale for path, scale in found.items() if scale}


def _merged(steps: Sequence[tuple[LowRank, float]], rows: slice, w: NDArray[Any]) -> NDArray[Any]:
    """Rows of the merged weight, float32 [n, n_in], from those of the model's.

    As when adapters are run: what the rows of one with magnitudes are divided by does not depend on the others.
    """
    y = w
    with np.errstate(over="ignore", invalid="ignore"):  # what became of it is looked at below
        for change, scale in steps:
            added = np.float32(scale) * change.added(rows)
            y = y + added
            if change.magnitude is not None:
                lengths = np.sqrt(np.square(w + added, dtype=np.float64).sum(1))
                if not lengths.all():
                    raise FormatError("a row of W + scale * B A is 0 and has no direction, which its magnitude needs")
                y = (y * (change.magnitude[rows] / lengths)[:, None]).astype(np.float32)
    if not np.isfinite(y).all() and np.isfinite(w).all():
        told = ", ".join(f"{scale:g}" for _, scale in steps)
        raise FormatError(
            f"what the adapters add at a scale of {told} does not fit into float32; try smaller scales, or leave them "
            "out"
        )
    return y


def _own_format(file: GGUFFile, name: str) -> BlockFormat:
    return file.tensors[name if name in file.tensors else EMBEDDING].format


def _rounded_again(file: GGUFFile, formats: Mapping[str, BlockFormat], changed: Iterable[str]) -> list[str]:
    """A line for quantized weights that were changed, and are quantized once more in the same type."""
    kinds = {_own_format(file, name) for name in changed} & {formats[name] for name in changed}
    again = sorted(kind.name for kind in kinds if not isinstance(kind, FloatFormat))
    if not again:
        return []
    return [f"changed weights are quantized anew ({', '.join(again)}); merging into the original model loses less"]
