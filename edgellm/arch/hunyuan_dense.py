"""HunYuan (Tencent, 2025), dense: a Llama that normalizes heads of queries and keys after they are turned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import ATTENTION_BIASES, DECODER, DEFAULTS, HuggingFace, Settings, decoder_hyperparameters
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(head_norms="turned")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _rope(s: Settings) -> Settings:
    """What it calls dynamic has a base that is raised by a fixed alpha, whatever the context: a base like any other."""
    rope = rope_settings(s)
    if rope.get("rope_type") == "dynamic" and rope.get("alpha"):
        n_rot = s.count("head_dim", max(1, s.count("hidden_size") // s.count("num_attention_heads")))
        base = rope.number("rope_theta") * rope.number("alpha") ** (n_rot / (n_rot - 2))
        rope.values |= {"rope_type": "default", "rope_theta": base}
    return rope


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    return decoder_hyperparameters(s, _rope(s))


HUGGING_FACE = HuggingFace(
    classes=("HunYuanDenseV1ForCausalLM",),
    model_type="hunyuan_v1_dense",
    hyperparameters=_hyperparameters,
    tensors=DECODER
    | {
        "blk.{}.attn_q_norm": "model.layers.{}.self_attn.query_layernorm",
        "blk.{}.attn_k_norm": "model.layers.{}.self_attn.key_layernorm",
    },
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS | {"intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    rope=_rope,
)
