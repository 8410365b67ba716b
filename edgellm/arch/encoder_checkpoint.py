"""How Hugging Face stores encoders: what differs from the checkpoints of decoders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgellm.arch.config import MOST_LAYERS
from edgellm.arch.huggingface import HuggingFace
from edgellm.formats.settings import Settings


@dataclass(frozen=True)
class EncoderCheckpoint(HuggingFace):
    """One kind of checkpoint of an encoder.

    prefix:           what names of tensors may begin with, where the model is a part of another.
    other_tensors:    the names in another form of checkpoint, which has the same config.json.
    left_out:         tensors that no vector or score needs, as a regular expression of how their names begin.
    first_rows:       tensors without their first rows: those up to the number under a key of config.json.
    ranks:            which hidden state of a text its classifier sees, "cls" or "mean", or the key of config.json that
                      says so; None where there is no classifier.
    """

    prefix: str = ""
    other_tensors: Mapping[str, str] = field(default_factory=dict)
    left_out: str | None = None
    first_rows: Mapping[str, str] = field(default_factory=dict)
    ranks: str | None = None

    def full_name(self, name: str) -> str:
        """A tensor's name where the model is alone; TensorFlow called weights and biases of norms otherwise."""
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        return name.removeprefix(self.prefix)

    def named_as_in(self, names: Collection[str]) -> EncoderCheckpoint:
        """The same with the form of names that a checkpoint has."""
        others = set(self.other_tensors.values()) - set(self.tensors.values())
        if any(f"{name.format(0)}.weight" in names for name in others):
            return replace(self, tensors=self.other_tensors, other_tensors={})
        return self


def encoder_hyperparameters(
    s: Settings, activation: str = "hidden_act", epsilon: str = "layer_norm_eps"
) -> dict[str, Any]:
    """GGUF's keys for what all encoders have in their config.json; of two, the keys there."""
    return {
        "block_count": s.count("num_hidden_layers", most=MOST_LAYERS),
        "context_length": s.count("max_position_embeddings"),
        "embedding_length": s.count("hidden_size"),
        "feed_forward_length": s.count("intermediate_size"),
        "attention.head_count": s.count("num_attention_heads"),
        "attention.layer_norm_epsilon": s.number(epsilon),
        "attention.causal": False,
        "hidden_act": s.get(activation, "gelu"),
    }
