"""Adapters for the families that edgellm runs: which file it is, and whether it belongs to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import HuggingFace, language_name
from edgellm.arch.registry import architecture_of
from edgellm.errors import FileProblem
from edgellm.formats.adapters import Adapter, Naming
from edgellm.formats.adapters.experts import fitted
from edgellm.formats.adapters.gguf import read_gguf_adapter
from edgellm.formats.adapters.peft import CONFIG, is_peft, read_peft, write_peft
from edgellm.formats.gguf import get_value
from edgellm.formats.tensor import Tensor

EXPECTED = f"a PEFT folder with {CONFIG}, or a GGUF adapter"


def naming_of(metadata: Mapping[str, Any]) -> Naming:
    """How checkpoints of a GGUF model call its tensors. Raises UnsupportedError for a family that edgellm lacks."""
    family, config = family_of_file(metadata)
    return family.naming(config)


def family_of_file(metadata: Mapping[str, Any]) -> tuple[HuggingFace, ModelConfig]:
    """Which kind of checkpoint a GGUF model would be, and its shape. Raises UnsupportedError as `naming_of`."""
    entry = architecture_of(metadata)
    config = entry.configure(metadata)
    return next((family for family in entry.hugging_face if family.fits(config)), entry.hugging_face[0]), config


def read_adapter(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter at `path`, a PEFT folder or a GGUF file, for the model with that metadata and those tensors.

    Raises FileProblem, FormatError or UnsupportedError, which name what does not fit.
    """
    architecture = get_value(metadata, "general.architecture", str)
    if path.is_dir():
        if not is_peft(path):
            raise FileProblem(f"{path} has no {CONFIG}; expected {EXPECTED}")
        adapter = read_peft(path, architecture, naming_of(metadata), language_name, tensors)
    elif not path.exists():
        raise FileProblem(f"{path} does not exist; expected {EXPECTED}")
    elif (path.parent / CONFIG).is_file():
        raise FileProblem(f"{path} is a part of an adapter; give the folder, {path.parent}")
    else:
        adapter = read_gguf_adapter(path)
    try:
        adapter = replace(adapter, weights=fitted(adapter.weights, tensors))
        adapter.check_fits(architecture, tensors)
    except FileProblem as problem:
        raise type(problem)(f"{path}: {problem}") from None
    return adapter


def read_peft_for(folder: Path, architecture: str, family: HuggingFace, config: ModelConfig) -> Adapter:
    """A PEFT folder for a base model of which only the shape is known."""
    return read_peft(folder, architecture, family.naming(config), language_name)


def save_adapter(folder: Path, adapter: Adapter, metadata: Mapping[str, Any]) -> None:
    """Write a PEFT folder of an adapter for the model with that metadata."""
    config = architecture_of(metadata).configure(metadata)
    write_peft(folder, adapter, naming_of(metadata), config.n_kv_heads)
