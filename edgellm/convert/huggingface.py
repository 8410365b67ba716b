"""A Hugging Face folder as metadata and tensors of a GGUF file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.arch import ARCHITECTURES, ModelConfig
from edgellm.arch.huggingface import HuggingFace, Settings, language_name, llama3_factors
from edgellm.convert.model_card import model_card
from edgellm.convert.parts import Part
from edgellm.convert.rows import PIECE_WEIGHTS, rows_of
from edgellm.convert.source import Source
from edgellm.convert.vocabulary import tokenizer_metadata
from edgellm.convert.vocabulary.generation_config import sampling_metadata
from edgellm.errors import FileProblem, FormatError, UnsupportedError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.json_file import read_json
from edgellm.formats.tensor import Tensor

# Buffers that some checkpoints store and every program computes for itself.
_BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$|\.position_ids$|\.attention\.bias$")
# The rest of models that also see or hear.
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
            metadata: dict[str, Any] = {"general.architecture": architecture, "general.type": "model"}
            metadata |= model_card(folder, config)
            metadata |= {f"{architecture}.{key}": value for key, value in shape.items()}
            tensors, notes = _language_tensors(checkpoint.tensors, checkpoint.others)
            notes += _tie(settings, tensors)
            parts = _parts(architecture, family, settings, metadata, tensors)
            n_vocab = next(part.tensor.shape[0] for part in parts if part.name == "token_embd.weight")
            metadata |= {f"{architecture}.vocab_size": n_vocab} | tokenizer_metadata(folder, n_vocab, notes)
            metadata |= sampling_metadata(folder, notes)
            notes += _without_rows(metadata["tokenizer.ggml.tokens"][n_vocab:], n_vocab)
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
                whole = {key: config[key] for key in ("tie_word_embeddings",) if config.get(key) is not None}
                return architecture, family, family.settings_of(text | whole)
    known = [name for entry in ARCHITECTURES.values() for family in entry.hugging_face for name in family.classes]
    raise UnsupportedError(f"config.json: the model's class is {classes[0]!r:.60}; edgellm converts {', '.join(known)}")


def _language_tensors(tensors: Mapping[str, Tensor], others: Mapping[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the language model under the names that a text model has; notes on what is left out.

    others:  name -> type of what holds no floats: buffers, or signs of a quantized checkpoint, which is refused.
    """
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    n_other = sum(bool(_OTHER_SENSES.match(name)) for name in (*tensors, *others))
    for name, dtype in others.items():
        if not _BUFFERS.search(name) and not _OTHER_SENSES.match(name):
            raise UnsupportedError(f"tensor {name!r} is {dtype}; edgellm converts weights in F32, F16 and BF16")
    for name, tensor in tensors.items():
        plain = language_name(name)
        if _OTHER_SENSES.match(name) or _BUFFERS.search(plain):
            continue
        if plain in found:
            raise FormatError(f"tensors {origin[plain]!r} and {name!r} are the same weight of a text model")
        found[plain], origin[plain] = tensor, name
    notes = [f"left out {n_other} tensors of its image and audio parts: edgellm runs the text part"] if n_other else []
    return found, notes


def _tie(settings: Settings, tensors: dict[str, Tensor]) -> list[str]:
    """Take away the second copy of tied embeddings, under whichever of the two names they were stored.

    Two that differ stay, as in transformers 5, whatever config.json says; the note says so.
    """
    embedding, output = "model.embed_tokens.weight", "lm_head.weight"
    if not settings.flag("tie_word_embeddings"):
        if output not in tensors and embedding in tensors:
            raise FormatError(
                f"the checkpoint has no tensor {output!r}, and config.json does not say that it is tied to the "
                "embeddings (tie_word_embeddings); a file is missing, or config.json is wrong"
            )
        return []
    if embedding not in tensors and output in tensors:
        tensors[embedding] = tensors.pop(output)
    if output not in tensors:
        return []
    if not _same_weights(tensors[embedding], tensors[output]):
        return [
            f"config.json says that {output} is tied to {embedding} (tie_word_embeddings), but the two differ: "
            "both are kept, as transformers 5 does; version 4 leaves the first out"
        ]
    del tensors[output]
    return []


def _without_rows(tokens: list[str], n_rows: int) -> list[str]:
    """A note on added tokens that the model was never given, such as a padding token of its training."""
    if not tokens:
        return []
    more = f" and {len(tokens) - 1} more" if len(tokens) > 1 else ""
    return [
        f"the added token {tokens[0]!r:.60}{more} is beyond the {n_rows} rows of the embedding: no answer can hold it, "
        "a prompt with it is refused, and llama.cpp does not load such a file"
    ]


def _same_weights(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if a.format is b.format and np.array_equal(a.raw, b.raw):
        return True
    first, second = Part("", a), Part("", b)
    return all(
        np.array_equal(a.format.dequantize(first.raw(rows)), b.format.dequantize(second.raw(rows)))
        for rows in rows_of(first, PIECE_WEIGHTS)
    )


def _parts(
    architecture: str, family: HuggingFace, settings: Settings, metadata: Mapping[str, Any], tensors: dict[str, Tensor]
) -> list[Part]:
    """The tensors by GGUF's names, checked by going through the forward pass."""
    entry = ARCHITECTURES[architecture]
    config = entry.configure(metadata)
    parts: list[Part] = []
    theirs: dict[str, str] = {}
    for ours, name in family.names(config.n_layers):
        if name in tensors:
            tensor = tensors.pop(name)
            theirs[ours] = name
            parts.append(Part(ours, tensor, family.row_order(ours, config), family.offset(ours)))
    try:
        if tensors:
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise UnsupportedError(f"{family.classes[0]} has no place for tensor {next(iter(tensors))!r}{more}")
        _check_biases(family, settings, config, theirs)
        if (factors := llama3_factors(family.rope(settings), config.n_rot)) is not None:
            parts.insert(0, Part("rope_freqs.weight", Tensor.of("rope_freqs.weight", factors)))
        entry.check(config, {part.name: part.tensor for part in parts})
    except FileProblem as problem:
        message = _in_their_names(str(problem), family, theirs, config.n_layers)
        raise type(problem)(message + _assumed(settings)) from None
    return parts


def _check_biases(family: HuggingFace, settings: Settings, config: ModelConfig, theirs: Mapping[str, str]) -> None:
    """A model has the biases that config.json says it has; transformers leaves others out, and makes up missing ones.

    Raises FormatError.
    """
    for part, key in family.biases.items():
        wanted = key is None or settings.flag(key)
        for layer in range(config.n_layers):
            name = f"blk.{layer}.{part}.bias"
            if wanted and name not in theirs:
                says = "this family has them" if key is None else f"config.json says that it has them ({key})"
                raise FormatError(f"the checkpoint has no tensor {name!r}, and {says}")
            if name in theirs and not wanted:
                raise FormatError(
                    f"the checkpoint has tensor {name!r}, and config.json says that there are no such biases: {key} is "
                    "false or missing; make it true to keep them, or take them out"
                )


def _assumed(settings: Settings) -> str:
    """What an error about tensors may come from: sizes that config.json leaves out."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim")  # fmt: skip
    taken = [f"{name} is missing, so {settings.assumed[name]}" for name in sizes if name in settings.assumed]
    return f"; in config.json {', '.join(taken)} was taken, as transformers does" if taken else ""


def _in_their_names(message: str, family: HuggingFace, theirs: Mapping[str, str], n_layers: int) -> str:
    """An error about a tensor of GGUF, told in the checkpoint's names."""
    names = dict(family.names(n_layers)) | dict(theirs)
    return re.sub(r"'([\w.]+)'", lambda match: repr(names.get(match[1], match[1])), message, count=1)
