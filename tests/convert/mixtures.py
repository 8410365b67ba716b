"""Checkpoints of mixtures of experts, as small as their parts allow."""

from __future__ import annotations

from typing import Any

import transformers as t

WINDOW = 48
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
         "beta_fast": 32.0, "beta_slow": 1.0}  # fmt: skip
_DEEP = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 2,
         "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16,
         "qk_rope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": 8}  # fmt: skip


def _mixture(name: str, **changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    return getattr(t, f"{name}ForCausalLM"), getattr(t, f"{name}Config"), changes


MIXTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mixtral": (t.MixtralForCausalLM, t.MixtralConfig, {"num_local_experts": 4}),
    "mixtral, window": (t.MixtralForCausalLM, t.MixtralConfig, {"sliding_window": WINDOW, "num_experts_per_tok": 1}),
    "qwen2moe": (t.Qwen2MoeForCausalLM, t.Qwen2MoeConfig, _EXPERTS | {"shared_expert_intermediate_size": 80}),
    "qwen3moe": (t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig, _EXPERTS | {"norm_topk_prob": True}),
    "qwen3moe, not normalized": (t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig, _EXPERTS),
    "olmoe": (t.OlmoeForCausalLM, t.OlmoeConfig, {"num_experts": 8, "num_experts_per_tok": 2}),
    "granitemoe": _mixture("GraniteMoe", num_local_experts=6, attention_multiplier=0.2, embedding_multiplier=3.0,
                           residual_multiplier=0.4, logits_scaling=2.5, tie_word_embeddings=True),
    "ernie4_5-moe": _mixture("Ernie4_5_Moe", moe_num_experts=8, moe_k=3, moe_intermediate_size=32,
                             moe_num_shared_experts=2),
    "ernie4_5-moe, no shared expert": _mixture("Ernie4_5_Moe", moe_num_experts=8, moe_k=3, moe_intermediate_size=32,
                                               moe_num_shared_experts=0, moe_layer_start_index=0),
    "gpt-oss": _mixture("GptOss", num_local_experts=8, num_experts_per_tok=2, sliding_window=WINDOW,
                        rope_parameters=_YARN | {"truncate": False}, layer_types=None),
    "gpt-oss, own layers": _mixture("GptOss", num_local_experts=4, num_experts_per_tok=4, sliding_window=WINDOW,
                                    layer_types=["full_attention", "full_attention", "sliding_attention"]),
    "gpt-oss, windows everywhere": _mixture("GptOss", num_local_experts=4, num_experts_per_tok=2,
                                            sliding_window=WINDOW, layer_types=["sliding_attention"] * 3),
    "gemma4": (t.Gemma4ForCausalLM, t.Gemma4TextConfig, {
        "enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 32,
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": WINDOW,
        "global_head_dim": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 384,
        "tie_word_embeddings": True}),
    "deepseek v2": _mixture("DeepseekV2", **_DEEP | {"q_lora_rank": None}, topk_method="greedy",
                            routed_scaling_factor=1.5),
    "deepseek v2, groups": _mixture("DeepseekV2", **_DEEP, topk_method="group_limited_greedy", n_group=4,
                                    topk_group=2, rope_parameters=_YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}),
    "deepseek v3": _mixture("DeepseekV3", **_DEEP, n_group=4, topk_group=2, rope_parameters=_YARN | {
        "mscale": 1.0, "mscale_all_dim": 1.0}),
    "glm 4.7 flash": _mixture("Glm4MoeLite", **_DEEP | {"first_k_dense_replace": ...}, norm_topk_prob=False,
                              mlp_layer_types=["dense", "sparse", "sparse"]),
    "lfm2moe": _mixture("Lfm2Moe", **_EXPERTS, num_dense_layers=1, num_hidden_layers=4, routed_scaling_factor=1.5,
                        tie_word_embeddings=True, head_dim=...,
                        layer_types=["conv", "full_attention", "conv", "conv"]),
    "qwen3next": _mixture("Qwen3Next", **_EXPERTS, shared_expert_intermediate_size=80, num_hidden_layers=4,
                          linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16,
                          linear_value_head_dim=16, rope_parameters={
                              "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "qwen35moe": (t.Qwen3_5MoeForCausalLM, t.Qwen3_5MoeTextConfig, _EXPERTS | {
        "shared_expert_intermediate_size": 80, "num_hidden_layers": 4, "linear_num_key_heads": 1,
        "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    # transformers has this family as one of its descendants, whose checkpoints have the same names.
    "bailingmoe2": (t.Glm4MoeForCausalLM, t.SarvamMoEConfig, _DEEP | {
        "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "head_dim": 16, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
}  # fmt: skip
# What a checkpoint calls its class, where transformers has another's.
CLASSES = {"bailingmoe2": "BailingMoeV2ForCausalLM"}
EXPORTED = [name for name in MIXTURES if name.startswith(("mixtral", "qwen2", "qwen3moe", "olmoe"))]
