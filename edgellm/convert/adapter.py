"""A LoRA adapter (Hu et al., 2021) as PEFT saves it, as a GGUF adapter file."""

from __future__ import annotations

from pathlib import Path

from edgellm.arch import ARCHITECTURES, ModelConfig
from edgellm.arch.adapters import family_of_file, read_peft_for
from edgellm.arch.huggingface import HuggingFace
from edgellm.convert.huggingface import family_of
from edgellm.convert.parts import Part
from edgellm.convert.source import Source
from edgellm.errors import UnsupportedError, UsageError
from edgellm.formats.adapters.gguf import gguf_metadata, gguf_tensors
from edgellm.formats.adapters.peft import read_peft_settings
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.json_file import read_json
from edgellm.formats.tensor import Tensor


def read_adapter(folder: Path, base: Path | None) -> Source:
    """Open a folder that PEFT saved; `base` is the model it was made for, as a folder or a GGUF file.

    Without `base`, the folder that adapter_config.json names is used when it is on this machine.
    Raises FileProblem, FormatError, UnsupportedError, UsageError when the base is not known.
    """
    architecture, family, config = _base_of(read_peft_settings(folder).base_path, base)
    adapter = read_peft_for(folder, architecture, family, config)
    adapter.refuse_score("a GGUF adapter")  # which names it itself
    try:
        parts = [Part(name, Tensor.of(name, x)) for name, x in gguf_tensors(adapter)]
    except UsageError as problem:
        raise UnsupportedError(f"{folder}: {problem}") from None
    return Source(gguf_metadata(adapter), parts, list(adapter.notes))


def _base_of(named: str | None, base: Path | None) -> tuple[str, HuggingFace, ModelConfig]:
    """The base model's architecture, its kind of checkpoint and its shape."""
    if base is None:
        base = Path(named) if named else None
        if base is None or not base.exists():
            raise UsageError(
                f"the adapter was made for {named!r:.100}, which is not a folder here; name its base model, a folder "
                "or a GGUF file (--base)"
            )
    if base.is_dir():
        architecture, family, settings = family_of(read_json(base / "config.json"))
        metadata = {f"{architecture}.{key}": value for key, value in family.hyperparameters(settings).items()}
        metadata["general.architecture"] = architecture
        return architecture, family, ARCHITECTURES[architecture].configure(metadata)
    with GGUFFile.open(base) as file:
        return file.get("general.architecture", str), *family_of_file(file.metadata)
