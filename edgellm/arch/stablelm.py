"""StableLM 2 (Stability AI, 2024): LayerNorm, a quarter of each head turned, and a Llama's gated feed-forward.

Some have attention and feed-forward side by side, and a norm for every head of queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import DECODER, DEFAULTS, NORM_BIASES, HuggingFace, Settings, decoder_hyperparameters
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.promises import where
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(norm="layer")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    is_parallel = keys.flag("use_parallel_residual", False)
    return decoder_config(metadata, STYLE._replace(order="shared") if is_parallel else STYLE)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    if w.block(0).has("attn_q_norm"):
        c = replace(c, style=c.style._replace(head_norms="heads"))
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _rope(s: Settings) -> Settings:
    return rope_settings(s, partial=True)


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    shape = decoder_hyperparameters(s, _rope(s), norm="layer", shares=True)
    return shape | {"use_parallel_residual": s.flag("use_parallel_residual")}


HUGGING_FACE = HuggingFace(
    classes=("StableLmForCausalLM",),
    model_type="stablelm",
    hyperparameters=_hyperparameters,
    tensors=DECODER
    | {
        "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_layernorm.norms.*",
        "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_layernorm.norms.*",
    },
    stacked=("attn_q_norm", "attn_k_norm"),
    biases=NORM_BIASES | dict.fromkeys(("attn_q", "attn_k", "attn_v"), "use_qkv_bias"),
    promises=dict.fromkeys(("attn_q_norm", "attn_k_norm"), where("qk_layernorm"))
    | {"ffn_norm": where("use_parallel_residual", False)},
    defaults=DEFAULTS
    | {
        "hidden_size": 2560, "intermediate_size": 6912, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25,
    },
    rope=_rope,
)  # fmt: skip
