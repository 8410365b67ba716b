"""Which kind of checkpoint a path is, and how each becomes a GGUF file."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from edgellm.convert.adapter import CONFIG, is_adapter, read_adapter
from edgellm.convert.huggingface import read_huggingface
from edgellm.convert.llama2c import read_llama2c_model
from edgellm.convert.source import Source
from edgellm.errors import FileProblem, UsageError


def open_checkpoint_source(path: Path, base: Path | None = None, tokenizer: Path | None = None) -> Source:
    """The model or adapter at `path`: a Hugging Face folder, a PEFT adapter folder or a llama2.c file.

    base:       the model that an adapter belongs to. tokenizer: that of a llama2.c model.

    Raises FileProblem, FormatError, UnsupportedError or UsageError.
    """
    if path.is_dir():
        if is_adapter(path):
            return read_adapter(path, base)
        if (path / "config.json").is_file():
            return read_huggingface(path)
        holds = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise FileProblem(f"{path} holds neither config.json nor {CONFIG}; it holds {holds}")
    if not path.exists():
        raise FileProblem(f"{path} does not exist")
    if path.suffix == ".gguf":
        raise UsageError(f"{path} is a GGUF file already; `edgellm quantize` makes smaller ones")
    if path.suffix == ".bin":
        return read_llama2c_model(path, tokenizer)
    raise UsageError(f"{path} is no checkpoint; expected a folder with config.json, or a llama2.c .bin file")


def type_of(source: Source) -> str:
    """The float type that most of the source's weights have: what a conversion without loss keeps."""
    counts: Counter[str] = Counter()
    for part in source.parts:
        counts[part.tensor.format.name] += prod(part.tensor.shape)
    return counts.most_common(1)[0][0]
