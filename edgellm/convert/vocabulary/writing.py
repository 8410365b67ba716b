"""From the metadata of a GGUF file to the tokenizer's files of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert.vocabulary.generation_config import generation_config
from edgellm.convert.vocabulary.twins import framing_roles, twin_of
from edgellm.errors import FormatError
from edgellm.files import atomic_write
from edgellm.text import Tokenizer, load_tokenizer
from edgellm.text.chat_template import KEY
from edgellm.text.string_index import as_bytes
from edgellm.text.vocabulary import PREFIX, Vocabulary, kind_of


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, so that `transformers.AutoTokenizer` gives the same ids.

    metadata:  keys `tokenizer.*` of a GGUF file, as it holds them.

    generation_config.json is written too if more than one token ends an answer, or the file recommends how to
    sample. Raises FormatError for a vocabulary that breaks its rules, UnsupportedError for one that `tokenizers` cannot
    express.
    """
    tokenizer = load_tokenizer(metadata)
    vocabulary = Vocabulary(metadata)
    architecture = vocabulary.text("general.architecture")
    _write(folder / "tokenizer.json", twin_of(metadata, vocabulary, architecture == "phi3"), indent=None)
    _write(folder / "tokenizer_config.json", _config(metadata, tokenizer, vocabulary), indent=2)
    ends = [i for role in ("eos", "eot", "eom") for i in vocabulary.role_ids(role)]
    ends = list(dict.fromkeys([*ends, *sorted(vocabulary.marked("stop_ids") or ())]))
    generation = ({"eos_token_id": ends} if len(ends) > 1 else {}) | generation_config(metadata)
    if generation:
        _write(folder / "generation_config.json", generation, indent=2)


def _config(metadata: Mapping[str, Any], tokenizer: Tokenizer, vocabulary: Vocabulary) -> dict[str, Any]:
    bert = metadata[f"{PREFIX}model"] == "bert"
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": bert,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]
        if bert
        else ["input_ids", "attention_mask"],
        **tokenizer.special_tokens,
    }
    if not bert:
        begin, end = framing_roles(metadata, vocabulary)
        config |= {"add_bos_token": begin is not None, "add_eos_token": end is not None}
    key = f"{metadata.get('general.architecture')}.context_length"
    length = metadata.get(key)
    if length is not None:
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)):
            raise FormatError(f"{key} is {kind_of(length)}; expected a number of tokens")
        config["model_max_length"] = int(length)
    if (templates := _templates(metadata)) is not None:
        config["chat_template"] = templates
    return config


def _templates(metadata: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """The chat template, or several with their names, as tokenizer_config.json holds them."""
    names = metadata.get(f"{KEY}s", [])
    if not hasattr(names, "as_bytes") and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise FormatError(f"{KEY}s is {kind_of(names)}; expected an array of names")
    names = [name.decode() for name in as_bytes(names)]
    found = {name: metadata.get(f"{KEY}.{name}") for name in names}
    default = metadata.get(KEY, metadata.get(f"{KEY}.default"))
    if default is not None:
        found["default"] = default
    for name, text in found.items():
        if not isinstance(text, str):
            raise FormatError(f"{KEY}.{name} is {'missing' if text is None else 'no text'}; expected a template")
    if set(found) <= {"default"}:
        return default
    return [{"name": name, "template": text} for name, text in found.items() if text is not None]


def _write(path: Path, values: Mapping[str, Any], indent: int | None) -> None:
    text = json.dumps(values, ensure_ascii=False, indent=indent)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")
