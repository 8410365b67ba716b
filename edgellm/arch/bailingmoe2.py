"""Ling and Ring 2 (inclusionAI, 2025): experts chosen as in DeepSeek 3; attention as in Qwen 3, half-turned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import DEFAULTS, HuggingFace, Settings, decoder_hyperparameters
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.arch.mixture import EXPERTS, ROUTER, SHARED_EXPERT, mixture_hyperparameters, mixture_of, n_foreseeing
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.promises import where
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value
from edgellm.graph.nodes.experts import Routing

STYLE = Style(head_norms="heads")
SIGMOID = 2  # as GGUF counts it
_LAYER = "model.layers.{}."


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    usual = Routing(n_used=8, scoring="sigmoid", normalize=False, n_ranked=2)
    keys, mixture = Keys(metadata), mixture_of(metadata, usual)
    if keys.has("expert_shared_feed_forward_length"):  # of one, in this family
        mixture = mixture._replace(n_ff_shared=mixture.n_ff_shared * keys.count("expert_shared_count", least=0))
    n_layers = keys.count("block_count") - n_foreseeing(metadata)
    return decoder_config(metadata, STYLE, n_layers=n_layers, mixture=mixture)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    w.pass_over_layers(range(c.n_layers, len(c.rotates)))
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    s.expect("score_function", "sigmoid")
    s.expect("use_qk_norm", True)
    shape = decoder_hyperparameters(s, rope_settings(s, partial=True)) | mixture_hyperparameters(s)
    return shape | {
        "leading_dense_block_count": s.count("first_k_dense_replace", least=0),
        "expert_shared_count": s.count("num_shared_experts", least=0),
        "expert_shared_feed_forward_length": s.count(
            "moe_shared_expert_intermediate_size", shape["expert_feed_forward_length"]
        ),
        "expert_weights_scale": s.number("routed_scaling_factor"),
        "expert_weights_norm": s.flag("norm_topk_prob"),
        "expert_gating_func": SIGMOID,
        "expert_group_count": s.count("n_group"),
        "expert_group_used_count": s.count("topk_group"),
    }


HUGGING_FACE = HuggingFace(
    classes=("BailingMoeV2ForCausalLM",),
    model_type="bailing_moe_v2",
    hyperparameters=_hyperparameters,
    aliases={"n_shared_experts": "num_shared_experts"},
    tensors={
        "token_embd": "model.word_embeddings",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.{}.attn_norm": _LAYER + "input_layernorm",
        "blk.{}.attn_qkv": _LAYER + "attention.query_key_value",
        "blk.{}.attn_q_norm": _LAYER + "attention.query_layernorm",
        "blk.{}.attn_k_norm": _LAYER + "attention.key_layernorm",
        "blk.{}.attn_output": _LAYER + "attention.dense",
        "blk.{}.ffn_norm": _LAYER + "post_attention_layernorm",
    }
    | {f"blk.{{}}.ffn_{part}": f"{_LAYER}mlp.{part}_proj" for part in ("gate", "up", "down")}
    | ROUTER
    | SHARED_EXPERT,
    experts=EXPERTS,
    vectors={"blk.{}.exp_probs_b.bias": _LAYER + "mlp.gate.expert_bias"},
    promises={"exp_probs_b.bias": where("moe_router_enable_expert_bias")},
    dense_first=("first_k_dense_replace",),
    biases={"attn_qkv": "use_qkv_bias", "attn_output": "use_bias"},
    defaults=DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 20, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 32768, "rope_theta": 600000.0,
        "partial_rotary_factor": 0.5, "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1,
        "moe_intermediate_size": 512, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5, "norm_topk_prob": True, "moe_router_enable_expert_bias": True,
    },
    rope=lambda s: rope_settings(s, partial=True),
)  # fmt: skip
