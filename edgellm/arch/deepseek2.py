"""DeepSeek 2 and 3 (2024), and GLM 4.7 Flash (Z.ai, 2026): latent attention, and many small experts beside shared ones.

Version 3 scores experts by the logistic of their logits, chooses them with a bias that keeps their load even, and first
the groups of experts that are best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.huggingface import (
    DECODER,
    DEFAULTS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
)
from edgellm.arch.huggingface_rope import BY_FORMULA, rope_settings
from edgellm.arch.latent import latent_attention, latent_of
from edgellm.arch.mixture import EXPERTS, ROUTER, SHARED_EXPERT, mixture_hyperparameters, mixture_of, n_foreseeing
from edgellm.arch.parts import embeddings, feed_forward, layer_output, logits_head, normalize
from edgellm.arch.promises import ALWAYS
from edgellm.arch.rope import frequencies, read_scaling
from edgellm.arch.stacks import KeysOrValues
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.graph.nodes import Graph, Rotation, Value, add
from edgellm.graph.nodes.experts import Routing, Scoring

SOFTMAX, SIGMOID = 1, 2  # as GGUF counts them


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    """The key of YaRN's multiplier holds a tenth of it: what files say was once what is multiplied by a logarithm."""
    keys, latent = Keys(metadata), latent_of(metadata)
    scaling = read_scaling(keys)
    scaling = scaling._replace(log_multiplier=10 * scaling.log_multiplier)
    # Version 2 compares single experts of groups, version 3 the two best of each together.
    is_sigmoid = keys.count("expert_gating_func", SIGMOID if _is_glm(keys) else SOFTMAX, least=0) == SIGMOID
    scoring: Scoring = "sigmoid" if is_sigmoid else "softmax"
    usual = Routing(n_used=6, scoring=scoring, normalize=False, n_ranked=2 if is_sigmoid else 1)
    size = _mscale(scaling.factor, scaling.log_multiplier) if scaling.kind == "yarn" else 1.0
    return decoder_config(
        metadata,
        n_layers=keys.count("block_count") - n_foreseeing(metadata),
        latent=latent,
        scaling=scaling,
        attention_scale=size * size / math.sqrt(latent.n_plain + latent.n_turned),
        mixture=mixture_of(metadata, usual),
    )


def _is_glm(keys: Keys) -> bool:
    """Of GLM 4.7 Flash there are files that do not say how it scores; llama.cpp knows it by its shape."""
    return keys.count("block_count") in (47, 48) and keys.metadata.get(f"{keys.architecture}.vocab_size") == 154880


def _mscale(factor: float, multiplier: float) -> float:
    return 0.1 * multiplier * math.log(factor) + 1


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    # With a multiplier, the scale of attention has all of YaRN's magnitude.
    magnitude = 1.0 if c.scaling.log_multiplier else c.scaling.yarn_magnitude
    rotation = Rotation(frequencies(c.rope_base, c.n_rot, c.scaling, c.n_ctx), interleaved=True, magnitude=magnitude)
    w.pass_over_layers(range(c.n_layers, len(c.rotates)))
    x = embeddings(g, w, c)
    for layer in range(c.n_layers):
        block = w.block(layer)
        h = normalize(block, c, x, "attn_norm")
        x = add(x, latent_attention(block, c, h, rotation), name=block.named("ffn_inp"))
        h = normalize(block, c, x, "ffn_norm")
        x = add(x, feed_forward(block, c, h), name=layer_output(block, c, layer))
    return g.output(x)


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    s.expect("rope_interleave", True)
    s.expect("mlp_bias", False)
    rope = rope_settings(s, BY_FORMULA)
    n_plain, n_turned = s.count("qk_nope_head_dim"), s.count("qk_rope_head_dim")
    kv_rank, value_dim = s.count("kv_lora_rank"), s.count("v_head_dim")
    shape = decoder_hyperparameters(s, rope) | mixture_hyperparameters(s)
    shape |= {
        "attention.head_count_kv": 1,
        "attention.key_length": kv_rank + n_turned,
        "attention.value_length": kv_rank,
        "attention.key_length_mla": n_plain + n_turned,
        "attention.value_length_mla": value_dim,
        "attention.kv_lora_rank": kv_rank,
        "rope.dimension_count": n_turned,
        "leading_dense_block_count": _n_dense(s, shape["block_count"]),
        "expert_shared_count": s.count("n_shared_experts", least=0),
        "expert_weights_scale": s.number("routed_scaling_factor"),
    }
    if s.get("q_lora_rank") is not None:
        shape["attention.q_lora_rank"] = s.count("q_lora_rank")
    rope.expect("attention_factor", None)
    shape.pop("rope.scaling.attn_factor", None)  # the multiplier says it all
    if rope.get("rope_type") == "yarn" and rope.get("mscale_all_dim"):
        # Without mscale, cosines and sines are multiplied as if there were no mscale_all_dim.
        if rope.get("mscale") != rope.get("mscale_all_dim"):
            raise UnsupportedError(f"{rope.file}: mscale and mscale_all_dim differ; edgellm runs equal ones here")
        shape["rope.scaling.yarn_log_multiplier"] = 0.1 * rope.number("mscale_all_dim")
    return shape


def _n_dense(s: Settings, n_layers: int) -> int:
    """The first layers have no experts."""
    kinds = s.get("mlp_layer_types")
    if kinds is None:
        return s.count("first_k_dense_replace", 0, least=0)
    n_dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if kinds != ["dense"] * n_dense + ["sparse"] * (n_layers - n_dense):
        raise UnsupportedError(
            f"{s.file}: mlp_layer_types is {kinds!r:.80}; edgellm runs dense layers first, then sparse"
        )
    return n_dense


def _version_2(s: Settings) -> dict[str, Any]:
    """As transformers computes it: weights are never made to add up to one."""
    s.expect("topk_method", "greedy", "group_limited_greedy")
    s.expect("scoring_func", "softmax")
    groups = s.get("topk_method") == "group_limited_greedy"
    return _hyperparameters(s) | {"expert_gating_func": SOFTMAX, "expert_weights_norm": False} | (
        _groups(s) if groups else {}
    )  # fmt: skip


def _version_3(s: Settings) -> dict[str, Any]:
    s.expect("topk_method", "noaux_tc")
    s.expect("scoring_func", "sigmoid")
    norm = {"expert_weights_norm": s.flag("norm_topk_prob")}
    return _hyperparameters(s) | {"expert_gating_func": SIGMOID} | norm | _groups(s)


def _groups(s: Settings) -> dict[str, Any]:
    return {"expert_group_count": s.count("n_group"), "expert_group_used_count": s.count("topk_group")}


_ATTENTION = "model.layers.{}.self_attn."
_TENSORS = {
    ours: theirs for ours, theirs in DECODER.items() if ours not in ("blk.{}.attn_k", "blk.{}.attn_v")
} | ROUTER | SHARED_EXPERT | {
    "blk.{}.attn_q_a": _ATTENTION + "q_a_proj",
    "blk.{}.attn_q_a_norm": _ATTENTION + "q_a_layernorm",
    "blk.{}.attn_q_b": _ATTENTION + "q_b_proj",
    "blk.{}.attn_kv_a_mqa": _ATTENTION + "kv_a_proj_with_mqa",
    "blk.{}.attn_kv_a_norm": _ATTENTION + "kv_a_layernorm",
}  # fmt: skip
_STACKS = EXPERTS | {
    "blk.{}.attn_k_b": KeysOrValues(_ATTENTION + "kv_b_proj", values=False),
    "blk.{}.attn_v_b": KeysOrValues(_ATTENTION + "kv_b_proj", values=True),
}
_BIASES = dict.fromkeys(("attn_q_a", "attn_kv_a_mqa", "attn_output"), "attention_bias")
_DEFAULTS = DEFAULTS | {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "routed_scaling_factor": 1.0, "n_shared_experts": 1,
}  # fmt: skip
_NULL_STAYS = ("num_key_value_heads", "q_lora_rank", "norm_topk_prob", "rope_interleave")
_BIAS = {"blk.{}.exp_probs_b.bias": "model.layers.{}.mlp.gate.e_score_correction_bias"}

HUGGING_FACE = HuggingFace(
    classes=("DeepseekV2ForCausalLM",),
    model_type="deepseek_v2",
    hyperparameters=_version_2,
    tensors=_TENSORS,
    experts=_STACKS,
    biases=_BIASES,
    dense_first=("first_k_dense_replace", "mlp_layer_types"),
    defaults=_DEFAULTS
    | {
        "intermediate_size": 11008, "max_position_embeddings": 2048, "n_routed_experts": 64, "n_shared_experts": 2,
        "moe_intermediate_size": 1407, "first_k_dense_replace": 0, "topk_method": "greedy",
    },
    null_stays=_NULL_STAYS,
)  # fmt: skip
VERSION_3 = replace(
    HUGGING_FACE,
    classes=("DeepseekV3ForCausalLM",),
    model_type="deepseek_v3",
    hyperparameters=_version_3,
    vectors=_BIAS,
    promises={"exp_probs_b.bias": ALWAYS},
    defaults=_DEFAULTS
    | {
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
        "num_attention_heads": 128, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
        "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
        "max_position_embeddings": 4096,
    },
)  # fmt: skip
GLM_LITE = replace(
    VERSION_3,
    classes=("Glm4MoeLiteForCausalLM",),
    model_type="glm4_moe_lite",
    defaults=_DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 10240, "moe_intermediate_size": 1536, "num_hidden_layers": 47,
        "num_attention_heads": 20, "n_routed_experts": 64, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 1.8, "q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256,
        "norm_topk_prob": True, "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "first_k_dense_replace": 1,
    },
)  # fmt: skip
