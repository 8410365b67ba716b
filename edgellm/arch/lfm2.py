"""LFM2 (Liquid AI, 2025): most layers have a short convolution between two gates in place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import short_conv
from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import DEFAULTS, HuggingFace, Settings
from edgellm.arch.parts import logits_head
from edgellm.arch.short_conv import short_conv_config, short_conv_hyperparameters


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return short_conv_config(metadata)


body = short_conv.body
head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    """The width of a feed-forward is adjusted where config.json says so: two thirds, multiplied and rounded up."""
    shape = short_conv_hyperparameters(s)
    if s.flag("block_auto_adjust_ff_dim"):
        step, n_ff = s.count("block_multiple_of"), int(2 * shape["feed_forward_length"] / 3)
        n_ff = int(s.number("block_ffn_dim_multiplier") * n_ff)
        shape["feed_forward_length"] = -(-n_ff // step) * step
    return shape


HUGGING_FACE = HuggingFace(
    classes=("Lfm2ForCausalLM",),
    model_type="lfm2",
    hyperparameters=_hyperparameters,
    aliases=short_conv.ALIASES | {"block_ff_dim": "intermediate_size"},
    first=short_conv.FIRST,
    tensors=short_conv.TENSORS,
    squeezed=("conv",),
    biases=short_conv.BIASES,
    defaults=DEFAULTS
    | {
        "hidden_size": 2560, "intermediate_size": 12288, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128000, "tie_word_embeddings": True, "rope_theta": 1e6, "conv_L_cache": 3,
        "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True,
    },
    null_stays=(),
)  # fmt: skip
