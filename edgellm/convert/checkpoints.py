"""Which kind of checkpoint a path is, and how it becomes a GGUF file."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from edgellm import checks
from edgellm.convert.adapter import read_adapter
from edgellm.convert.checked import runs_again
from edgellm.convert.huggingface import read_huggingface
from edgellm.convert.llama2c import read_llama2c_model
from edgellm.convert.recipes import check_overrides, choose_formats, recipe_of, renamed, true_recipe
from edgellm.convert.source import Source
from edgellm.convert.targets import check_target, files_of
from edgellm.convert.writer import write_model
from edgellm.errors import FileProblem, UsageError
from edgellm.files import AnyPath
from edgellm.formats.adapters.peft import CONFIG, is_peft

AS_IT_IS = "auto"
_EXPECTED = "a folder with config.json and weights, a PEFT adapter's folder, or a llama2.c .bin file"
_HINTS = {
    "*.gguf": "a GGUF file is converted already",
    "model_index.json": "it is an image model of diffusers, and edgellm runs language models",
    "consolidated*": "consolidated.* are weights in their maker's own form: take the Hugging Face form",
}


def convert_checkpoint(
    path: AnyPath,
    target: AnyPath,
    type_name: str = AS_IT_IS,
    *,
    base: AnyPath | None = None,
    tokenizer: AnyPath | None = None,
    overrides: Sequence[str] = (),
    n_threads: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[str]:
    """Write the checkpoint at `path` as a GGUF file; returns what a person should know of it.

    type_name:  a recipe such as "Q4_K_M" or "F16"; "auto" keeps the float type that the checkpoint has, and of one that
                is quantized already what fits types of GGUF.
    base:       the model that an adapter belongs to. tokenizer: that of a llama2.c model.
    overrides:  types for single tensors, as `edgellm quantize` takes them.

    Raises FileProblem, FormatError, UnsupportedError or UsageError; then no file is left at `target`.
    """
    path, target = checks.path("path", path), checks.path("target", target)
    base = None if base is None else checks.path("base", base)
    tokenizer = None if tokenizer is None else checks.path("tokenizer", tokenizer)
    overrides, progress = checks.texts("overrides", overrides), checks.function("progress", progress)
    check_request(target, checks.text("type_name", type_name), overrides)
    recipe = None if type_name.lower() == AS_IT_IS else recipe_of(type_name)
    check_target(target, files_of(path, base, tokenizer))
    with open_source(path, base, tokenizer, as_it_is=recipe is None) as source:
        keeps_types = source.keeps_types
        recipe = recipe or recipe_of("F16" if keeps_types else _float_type(source))
        if source.metadata["general.type"] == "adapter" and not recipe.is_float:
            raise UsageError(f"an adapter is kept in floats, not in {recipe.name}; choose F32, F16, BF16 or auto")
        formats = choose_formats(None if keeps_types else recipe, source.parts, source.metadata, overrides)
        true = true_recipe(recipe, source.parts, formats)
        is_model = source.metadata["general.type"] == "model"
        write_model(target, source.metadata | true.metadata, source.parts, formats, n_threads=n_threads,
                    progress=progress, check=runs_again if is_model else None)  # fmt: skip
        return [*source.notes, *formats.told(), *([] if keeps_types else renamed(recipe, true.name))]


def check_request(target: Path, type_name: str = AS_IT_IS, overrides: Sequence[str] = ()) -> None:
    """Raise what `convert_checkpoint` would for these, whatever the checkpoint: it may have to be fetched first."""
    if type_name.lower() != AS_IT_IS:
        recipe_of(type_name)
    check_overrides(overrides)
    check_target(target)


def open_source(path: Path, base: Path | None = None, tokenizer: Path | None = None, as_it_is: bool = True) -> Source:
    """The model or adapter at `path`: a Hugging Face folder, a PEFT adapter folder or a llama2.c file.

    as_it_is:  whether a checkpoint that is quantized already shall keep its grid; otherwise it is dequantized.

    Raises FileProblem, FormatError, UnsupportedError or UsageError.
    """
    is_folder = path.is_dir()
    if base is not None and not (is_folder and is_peft(path)):
        raise UsageError(f"{path} is no adapter, so it has no base model (--base)")
    if tokenizer is not None and is_folder:
        raise UsageError(f"{path} is a folder with its own tokenizer; --tokenizer goes with a llama2.c file")
    if is_folder:
        if is_peft(path):
            return read_adapter(path, base)
        if (path / "config.json").is_file():
            return read_huggingface(path, as_it_is)
        raise FileProblem(_what_is_in(path))
    if not path.exists():
        raise FileProblem(f"{path} does not exist; expected {_EXPECTED}")
    if path.suffix == ".gguf":
        raise UsageError(f"{path} is a GGUF file already; `edgellm quantize` makes smaller ones")
    if path.suffix == ".bin" and not _is_pytorch(path):
        return read_llama2c_model(path, tokenizer)
    if (path.parent / "config.json").is_file():
        raise UsageError(f"{path} is a part of a checkpoint; give the folder, {path.parent}")
    raise UsageError(f"{path} alone is no checkpoint; expected {_EXPECTED}")


def _what_is_in(folder: Path) -> str:
    """The error line for a folder without config.json."""
    names = sorted(entry.name for entry in folder.iterdir())
    hint = next((f"; {hint}" for pattern, hint in _HINTS.items() if fnmatch.filter(names, pattern)), "")
    holds = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{folder} has no config.json and no {CONFIG}; it {f'holds {holds}' if names else 'is empty'}{hint}"


def _is_pytorch(path: Path) -> bool:
    """Whether a .bin file is one of PyTorch's, a zip archive or, from its first years, a bare pickle."""
    with open(path, "rb") as file:
        return file.read(4).startswith((b"PK\3\4", b"\x80\2\x8a"))


def _float_type(source: Source) -> str:
    """The type that most of the weights have: what a conversion without loss keeps."""
    counts: Counter[str] = Counter()
    for part in source.parts:
        counts[part.tensor.format.name] += prod(part.tensor.shape)
    return counts.most_common(1)[0][0]
