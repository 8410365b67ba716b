"""GPT-NeoX and Pythia (EleutherAI, 2022): attention and feed-forward side by side, a quarter of each head turned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    NORM_BIASES,
    HuggingFace,
    Settings,
    activation_hyperparameters,
    decoder_hyperparameters,
)
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError, shown
from edgellm.graph.nodes import Graph, Value

STYLE = Style(norm="layer", order="parallel", feed_forward="plain", activation="gelu_erf")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    is_parallel = Keys(metadata).flag("use_parallel_residual", True)
    return decoder_config(metadata, STYLE if is_parallel else STYLE._replace(order="before"))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head
_NAMES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
_USUAL: dict[str, Any] = {"partial_rotary_factor": 0.25, "rope_theta": 10000.0}


def _rope(s: Settings) -> Settings:
    """Raises FormatError for a setting under the name that other families have for it, which nobody reads here."""
    section = s.section("rope_scaling").values or s.section("rope_parameters").values
    for name, elsewhere in _NAMES.items():
        value, usual = s.get(elsewhere), _USUAL[elsewhere]
        if name not in s.values and elsewhere not in section and value not in (None, usual):
            raise FormatError(
                f"config.json: {elsewhere} is {shown(value)}, and this family calls it {name}: transformers passes the "
                f"other name over and takes {usual}; name it {name} if it is meant, or leave it out"
            )
    return rope_settings(s, partial=True)


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.values["num_key_value_heads"] = s.count("num_attention_heads")
    shape = decoder_hyperparameters(s, _rope(s), norm="layer", shares=True)
    shape |= activation_hyperparameters(s, STYLE)
    return shape | {"use_parallel_residual": s.flag("use_parallel_residual")}


HUGGING_FACE = HuggingFace(
    classes=("GPTNeoXForCausalLM",),
    model_type="gpt_neox",
    hyperparameters=_hyperparameters,
    aliases=_NAMES,
    tensors={
        "token_embd": "gpt_neox.embed_in",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "embed_out",
        "blk.{}.attn_norm": "gpt_neox.layers.{}.input_layernorm",
        "blk.{}.attn_qkv": "gpt_neox.layers.{}.attention.query_key_value",
        "blk.{}.attn_output": "gpt_neox.layers.{}.attention.dense",
        "blk.{}.ffn_norm": "gpt_neox.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    },
    interleaved=True,
    biases=NORM_BIASES
    | {"attn_qkv": "attention_bias", "attn_output": "attention_bias", "ffn_up": None, "ffn_down": None},
    defaults={
        "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44, "num_attention_heads": 64,
        "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "attention_bias": True, "use_parallel_residual": True,
        "tie_word_embeddings": False, **_USUAL,
    },
    rope=_rope,
)  # fmt: skip
