"""A Hugging Face folder as metadata and tensors of a GGUF file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgellm.arch import ARCHITECTURES
from edgellm.arch.huggingface import HuggingFace, Settings, llama3_factors, rope_settings
from edgellm.convert.json_file import read_json
from edgellm.convert.model_card import model_card
from edgellm.convert.parts import Part
from edgellm.convert.source import Source, tensor_of
from edgellm.convert.vocabulary import tokenizer_metadata
from edgellm.errors import FileProblem, FormatError, UnsupportedError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.tensor import Tensor

# Buffers that some checkpoints store and every program computes for itself.
_BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$|\.position_ids$|\.attention\.bias$")
# Models that also see or hear keep their language model beside the rest.
_LANGUAGE_PREFIXES = (("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."),
                      ("model.language_model.", "model."))  # fmt: skip
_OTHER_SENSES = re.compile(r"(model\.)?(vision_tower|visual|audio_tower|multi_modal_projector|embed_vision)\.")


def read_huggingface(folder: Path) -> Source:
    """Open a folder with config.json, tokenizer files and safetensors or PyTorch files.

    Everything that can be known before the weights are read is checked: the family, its hyperparameters, the
    tokenizer, the name and shape of every tensor. Raises FileProblem, FormatError or UnsupportedError.
    """
    with contextlib.ExitStack() as opened:
        try:
            config = read_json(folder / "config.json")
            architecture, family, settings = family_of(config)
            shape = family.hyperparameters(settings)
            checkpoint = opened.enter_context(open_checkpoint(folder))
            metadata = {"general.architecture": architecture, "general.type": "model"}
            metadata |= model_card(folder, config)
            metadata |= {f"{architecture}.{key}": value for key, value in shape.items()}
            tensors, notes = _language_tensors(checkpoint.tensors)
            _refuse_others(checkpoint.others)
            parts = _parts(architecture, family, settings, metadata, tensors)
            n_vocab = next(part.tensor.shape[0] for part in parts if part.name == "token_embd.weight")
            metadata |= {f"{architecture}.vocab_size": n_vocab} | tokenizer_metadata(folder, n_vocab, notes)
        except FileProblem as problem:
            raise type(problem)(f"{folder}: {str(problem).removeprefix(f'{folder}: ')}") from None
        return Source(metadata, parts, notes, opened.pop_all().close)


def family_of(config: dict[str, Any]) -> tuple[str, HuggingFace, Settings]:
    """The GGUF architecture, the kind of checkpoint and its settings, by the class that config.json names."""
    classes = config.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise FormatError(f"config.json: architectures is {classes!r:.60}; expected a list with the model's class")
    if config.get("quantization_config"):
        kind = config["quantization_config"]
        method = kind.get("quant_method", "?") if isinstance(kind, dict) else "?"
        raise UnsupportedError(
            f"config.json: the checkpoint is quantized already ({method!r:.40}); convert the original instead"
        )
    for architecture, entry in ARCHITECTURES.items():
        for family in entry.hugging_face:
            if classes[0] in family.classes:
                text = Settings(config).section("text_config").values if "text_config" in config else config
                shared = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
                return architecture, family, Settings(shared | text, family.defaults)
    known = [name for entry in ARCHITECTURES.values() for family in entry.hugging_face for name in family.classes]
    raise UnsupportedError(f"config.json: the model's class is {classes[0]!r:.60}; edgellm converts {', '.join(known)}")


def _language_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the language model under the names that a text model has; notes on what is left out."""
    found: dict[str, Tensor] = {}
    n_other = 0
    for name, tensor in tensors.items():
        if _OTHER_SENSES.match(name):
            n_other += 1
            continue
        plain = next((new + name[len(old) :] for old, new in _LANGUAGE_PREFIXES if name.startswith(old)), name)
        if not _BUFFERS.search(plain):
            found[plain] = tensor
    notes = [f"left out {n_other} tensors of its image and audio parts: edgellm runs the text part"] if n_other else []
    return found, notes


def _refuse_others(others: Mapping[str, str]) -> None:
    """Tensors that hold no floats are buffers, or signs of a quantized checkpoint."""
    for name, dtype in others.items():
        if not _BUFFERS.search(name) and not _OTHER_SENSES.match(name):
            raise UnsupportedError(f"tensor {name!r} is {dtype}; edgellm converts weights in F32, F16 and BF16")


def _parts(
    architecture: str, family: HuggingFace, settings: Settings, metadata: Mapping[str, Any], tensors: dict[str, Tensor]
) -> list[Part]:
    """The tensors by GGUF's names, checked by going through the forward pass."""
    tensors = _untied(settings, tensors)
    entry = ARCHITECTURES[architecture]
    config = entry.configure(metadata)
    parts: list[Part] = []
    theirs: dict[str, str] = {}
    for ours, name in names_of(family, config.n_layers):
        if name in tensors:
            tensor = tensors.pop(name)
            theirs[ours] = name
            parts.append(Part(ours, tensor, family.row_order(ours, config), family.offset(ours)))
    if tensors:
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        raise UnsupportedError(f"{family.classes[0]} has no place for tensor {next(iter(tensors))!r}{more}")
    if (factors := llama3_factors(rope_settings(settings), config.n_rot)) is not None:
        parts.insert(0, Part("rope_freqs.weight", tensor_of("rope_freqs.weight", factors)))
    try:
        entry.check(config, {part.name: part.tensor for part in parts})
    except FormatError as problem:
        raise FormatError(_in_their_names(str(problem), family, theirs, config.n_layers)) from None
    return parts


def names_of(family: HuggingFace, n_layers: int) -> Iterator[tuple[str, str]]:
    """All tensors that the family can have, as (GGUF's name, Hugging Face's name), layer by layer."""
    for ending in ("weight", "bias"):
        for ours, name in family.tensors.items():
            if "{}" not in ours:
                yield f"{ours}.{ending}", f"{name}.{ending}"
    for layer in range(n_layers):
        for ours, name in family.tensors.items():
            if "{}" in ours:
                for ending in ("weight", "bias"):
                    yield f"{ours.format(layer)}.{ending}", f"{name.format(layer)}.{ending}"


def _untied(settings: Settings, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the second copy of tied embeddings, under whichever of the two names they were stored."""
    embedding, output = "model.embed_tokens.weight", "lm_head.weight"
    if settings.get("tie_word_embeddings", False):
        if embedding not in tensors and output in tensors:
            tensors[embedding] = tensors[output]
        tensors.pop(output, None)
    elif output not in tensors and embedding in tensors:
        raise FormatError(
            f"the checkpoint has no tensor {output!r}, and config.json does not say that it is tied to the embeddings "
            "(tie_word_embeddings); a file is missing, or config.json is wrong"
        )
    return tensors


def _in_their_names(message: str, family: HuggingFace, theirs: Mapping[str, str], n_layers: int) -> str:
    """An error about a tensor of GGUF, told in the checkpoint's names."""
    names = dict(names_of(family, n_layers)) | dict(theirs)
    return re.sub(r"'([\w.]+)'", lambda match: repr(names.get(match[1], match[1])), message, count=1)
