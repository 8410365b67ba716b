"""A LoRA adapter (Hu et al., 2021) as PEFT saves it, as a GGUF adapter file.

For a weight W of the base model, an adapter holds two thin matrices: W x becomes W x + alpha / rank * B (A x).
GGUF names them after the weight: `blk.0.attn_q.weight.lora_a` [rank, n_in] and `.lora_b` [n_out, rank].
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgellm.arch import ARCHITECTURES, ModelConfig, architecture_of
from edgellm.arch.huggingface import HuggingFace, Settings
from edgellm.convert.huggingface import family_of, names_of
from edgellm.convert.json_file import read_json
from edgellm.convert.parts import Part
from edgellm.convert.source import Source, tensor_of
from edgellm.errors import FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor

CONFIG = "adapter_config.json"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")


def read_adapter(folder: Path, base: Path | None) -> Source:
    """Open a folder that PEFT saved; `base` is the model it was made for, as a folder or a GGUF file.

    Without `base`, the folder that adapter_config.json names is used when it is on this machine.
    Raises FileProblem, FormatError, UnsupportedError, UsageError when the base is not known.
    """
    settings = Settings(read_json(folder / CONFIG), file=CONFIG)
    _refuse_other_methods(settings)
    architecture, family, config = _base_of(settings, base)
    with contextlib.ExitStack() as opened:
        try:
            checkpoint = opened.enter_context(open_checkpoint(folder, "adapter_model"))
            metadata = {
                "general.architecture": architecture,
                "general.type": "adapter",
                "general.name": folder.resolve().name,
                "adapter.type": "lora",
                "adapter.lora.alpha": settings.number("lora_alpha"),
            }
            if isinstance(name := settings.get("base_model_name_or_path"), str):
                base_name = name.rstrip("/").rpartition("/")[2]
                metadata |= {"general.base_model.count": 1, "general.base_model.0.name": base_name}
            parts = _parts(checkpoint.tensors, settings, family, config)
        except FileProblem as problem:
            raise type(problem)(f"{folder}: {str(problem).removeprefix(f'{folder}: ')}") from None
        return Source(metadata, parts, [], opened.pop_all().close)


def _refuse_other_methods(s: Settings) -> None:
    """What PEFT can do beyond plain LoRA on linears, and a GGUF adapter cannot hold."""
    if s.get("peft_type") != "LORA":
        raise UnsupportedError(f"{CONFIG}: the adapter is {s.get('peft_type')!r:.40}; edgellm converts LORA")
    for name, plain in (("use_dora", False), ("bias", "none"), ("modules_to_save", None), ("fan_in_fan_out", False),
                        ("trainable_token_indices", None), ("lora_bias", False)):  # fmt: skip
        if s.get(name, plain) not in (plain, [], {}):
            raise UnsupportedError(f"{CONFIG}: {name} is {s.get(name)!r:.60}; a GGUF adapter holds plain LoRA only")


def _base_of(s: Settings, base: Path | None) -> tuple[str, HuggingFace, ModelConfig]:
    """The base model's architecture, its kind of checkpoint and its shape."""
    if base is None:
        named = s.get("base_model_name_or_path")
        base = Path(named) if isinstance(named, str) and named else None
        if base is None or not base.exists():
            raise UsageError(
                f"the adapter was made for {named!r:.100}, which is not a folder here; name its base model, a folder "
                "or a GGUF file (--base)"
            )
    if base.is_dir():
        architecture, family, base_settings = family_of(read_json(base / "config.json"))
        shape = family.hyperparameters(base_settings)
        metadata = {f"{architecture}.{key}": value for key, value in shape.items()}
        metadata["general.architecture"] = architecture
        return architecture, family, ARCHITECTURES[architecture].configure(metadata)
    with GGUFFile.open(base) as file:
        entry = architecture_of(file.metadata)
        return file.get("general.architecture", str), entry.hugging_face[0], entry.configure(file.metadata)


def _parts(tensors: Mapping[str, Tensor], s: Settings, family: HuggingFace, c: ModelConfig) -> list[Part]:
    ours = {theirs.removesuffix(".weight"): name for name, theirs in names_of(family, c.n_layers)}
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        module = match["module"] if match else ""
        if not match or module not in ours:
            raise UnsupportedError(f"tensor {name!r:.120} belongs to no linear of a {c.architecture} model")
        pairs.setdefault(module, {})[match["side"]] = tensor
    if not pairs:
        raise FormatError("the adapter holds no tensors")
    parts = []
    for module, pair in pairs.items():
        if len(pair) != 2:
            raise FormatError(f"{module} has lora_{next(iter(pair))} alone; expected A and B")
        a, b = pair["A"], pair["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise FormatError(
                f"{module}: lora_A has shape {list(a.shape)} and lora_B {list(b.shape)}; expected [rank, n_in] and "
                "[n_out, rank]"
            )
        name, order = ours[module], family.row_order(ours[module], c)
        factor = _relative_scale(s, module, rank=a.shape[0])
        if factor != 1:
            b = tensor_of(b.name, b.dequantize() * np.float32(factor))
        if order is not None and len(order) != b.shape[0]:
            raise FormatError(f"{module}: lora_B has {b.shape[0]} rows; the base model's weight has {len(order)}")
        parts += [Part(f"{name}.lora_a", a), Part(f"{name}.lora_b", b, order)]
    return parts


def _relative_scale(s: Settings, module: str, rank: int) -> float:
    """By what B is multiplied, so that one alpha and each matrix's own rank give the scale that PEFT would use."""
    alpha = _pattern(s, "alpha_pattern", module) or s.number("lora_alpha")
    scale = alpha / math.sqrt(rank) if s.get("use_rslora") else alpha / rank
    return scale / (s.number("lora_alpha") / rank)


def _pattern(s: Settings, name: str, module: str) -> float | None:
    """The value of the first entry that names the end of the module's name. PEFT allows patterns; those are refused."""
    for key in s.section(name).values:
        if not re.fullmatch(r"[\w.]+", key):
            raise UnsupportedError(f"{CONFIG}: {name} has the pattern {key!r:.60}; edgellm reads plain names")
        if module == key or module.endswith(f".{key}"):
            return s.section(name).number(key)
    return None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (folder / CONFIG).is_file()
