"""GPT-2 (OpenAI, 2019): learnt positions, LayerNorm, projections fused, and biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    NORM_BIASES,
    HuggingFace,
    Settings,
    activation_hyperparameters,
    decoder_hyperparameters,
)
from edgellm.arch.parts import logits_head
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(norm="layer", feed_forward="plain", activation="gelu", learnt_positions=True)


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, None)


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        s.expect(name, False)
    if s.get("intermediate_size") is None:
        s.values["intermediate_size"] = 4 * s.count("hidden_size")
    s.values["num_key_value_heads"] = s.count("num_attention_heads")
    shape = decoder_hyperparameters(s, norm="layer", shares=True)
    shape |= activation_hyperparameters(s, STYLE, "activation_function")
    return {name: value for name, value in shape.items() if not name.startswith("rope.")}


LINEARS = {"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
HUGGING_FACE = HuggingFace(
    classes=("GPT2LMHeadModel",),
    model_type="gpt2",
    hyperparameters=_hyperparameters,
    aliases={
        "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings", "n_inner": "intermediate_size",
        "layer_norm_epsilon": "layer_norm_eps",
    },
    first=("n_inner", "layer_norm_epsilon"),
    tensors={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.{}.attn_norm": "transformer.h.{}.ln_1",
        "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    }
    | {f"blk.{{}}.{ours}": f"transformer.h.{{}}.{theirs}" for ours, theirs in LINEARS.items()},
    transposed=tuple(LINEARS),
    biases=NORM_BIASES | dict.fromkeys(LINEARS),
    defaults={
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 1024,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": True,
    },
)  # fmt: skip
