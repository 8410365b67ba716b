"""Checkpoints of models that make vectors or ranks: what of them such a model needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgellm.arch.encoder_checkpoint import EncoderCheckpoint
from edgellm.arch.huggingface import HuggingFace, Settings
from edgellm.engine.pooling import RANK
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.tensor import Tensor
from edgellm.text import load_tokenizer


def prepare_encoder(
    family: HuggingFace, settings: Settings, tensors: dict[str, Tensor]
) -> tuple[HuggingFace, list[str]]:
    """Take heads of its training away from a checkpoint's tensors, and rows that no text reaches.

    Returns the family with the names that this checkpoint has, and notes on what was left out.
    """
    if not isinstance(family, EncoderCheckpoint):
        return family, _left_out(tensors, ["lm_head.weight"] if "lm_head.weight" in tensors else [])
    family = family.named_as_in(tensors)
    own = set(family.tensors.values())
    heads = [name for name in tensors if family.left_out and re.match(family.left_out, name)
             and name.rpartition(".")[0] not in own]  # fmt: skip
    for ours, key in family.first_rows.items():
        name = f"{family.tensors[ours]}.weight"
        if name in tensors:
            tensors[name] = _from_row(tensors[name], settings.count(key, least=0) + 1, key)
    return family, _left_out(tensors, heads)


def check_padding(family: HuggingFace, settings: Settings, metadata: Mapping[str, Any]) -> list[str]:
    """Where positions begin behind the padding token's, a text that holds that token has others in transformers.

    There it has none of its own, and is not counted. Raises UnsupportedError where it stands around each text; a note
    where a text can hold it.
    """
    if not isinstance(family, EncoderCheckpoint) or not family.first_rows:
        return []
    key = next(iter(family.first_rows.values()))
    padding, tokenizer = settings.count(key, least=0), load_tokenizer(metadata)
    if padding >= tokenizer.n_vocab:
        return []
    name = f"config.json: {key} is {padding}, and that token is {tokenizer.token_name(padding)!r:.60}"
    if padding in tokenizer.encode("", add_special=True):
        raise UnsupportedError(
            f"{name}, which stands in every text: transformers gives it no position of its own, and edgellm counts it "
            "as others; the tokenizer is another model's, or config.json is wrong"
        )
    if tokenizer.is_text(padding):
        return [f"{name}: in texts with it, transformers does not count it among the positions, and edgellm does"]
    return []


def classes_of(architecture: str, family: HuggingFace, settings: Settings) -> dict[str, Any]:
    """What the file says of a classifier, which ranks texts: which state it sees, and the names of its classes."""
    if not isinstance(family, EncoderCheckpoint) or family.ranks is None:
        return {}
    state = settings.get(family.ranks, family.ranks)
    result = {f"{architecture}.pooling_type": RANK, "edgellm.ranked_state": state}
    named = settings.section("id2label").values
    try:
        labels = [str(named[key]) for key in sorted(named, key=int)]
    except ValueError:
        raise FormatError(
            "config.json: id2label has keys that are no numbers; expected a name for each class"
        ) from None
    if labels and not all(label.startswith("LABEL_") for label in labels):
        result[f"{architecture}.classifier.output_labels"] = labels
    return result


def _left_out(tensors: dict[str, Tensor], names: list[str]) -> list[str]:
    for name in names:
        del tensors[name]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"left out tensor {names[0]!r}{more}: heads of its training, of which vectors have no need"]


def _from_row(tensor: Tensor, first: int, key: str) -> Tensor:
    """A matrix from a row on."""
    if len(tensor.shape) != 2 or tensor.shape[0] <= first:
        shape = list(tensor.shape)
        raise FormatError(f"tensor {tensor.name!r} has shape {shape}; expected more than {first} rows ({key})")
    return Tensor(tensor.name, (tensor.shape[0] - first, tensor.shape[1]), tensor.format, tensor.raw[first:])
