"""ERNIE 4.5 with experts (Baidu, 2025): as the dense one, the first layers without experts, chosen with a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import ernie4_5
from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.huggingface import DECODER, DEFAULTS, HuggingFace, Settings, decoder_hyperparameters
from edgellm.arch.mixture import EXPERTS, ROUTER, SHARED_EXPERT, mixture_hyperparameters, mixture_of
from edgellm.arch.promises import ALWAYS
from edgellm.errors import UnsupportedError
from edgellm.graph.nodes.experts import Routing


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, mixture=mixture_of(metadata, Routing(n_used=6)))


body, head = ernie4_5.body, ernie4_5.head


NEGLIGIBLE = 1e-9  # of a sum of weights


def _hyperparameters(s: Settings) -> dict[str, Any]:
    """Which layers have experts, files say by how many at the start have none."""
    s.expect("hidden_act", "silu")
    s.expect("use_bias", False)
    s.expect("moe_layer_interval", 1)
    shape = decoder_hyperparameters(s) | mixture_hyperparameters(s)
    last = s.get("moe_layer_end_index", -1)
    if last not in (-1, shape["block_count"] - 1):
        raise UnsupportedError(
            f"{s.file}: moe_layer_end_index is {last!r:.20}; edgellm runs experts up to the last layer"
        )
    shape["leading_dense_block_count"] = s.count("moe_layer_start_index", least=0)
    shape["interleave_moe_layer_step"] = 1
    least = s.number("moe_norm_min", NEGLIGIBLE)
    if least > NEGLIGIBLE:
        raise UnsupportedError(
            f"{s.file}: moe_norm_min is {least:g}; edgellm divides by the sum of weights, however small, as with "
            f"{NEGLIGIBLE:g}"
        )
    n_shared = s.count("moe_num_shared_experts", least=0)
    if n_shared:
        shape["expert_shared_count"] = n_shared
        shape["expert_shared_feed_forward_length"] = n_shared * shape["expert_feed_forward_length"]
    return shape


HUGGING_FACE = HuggingFace(
    classes=("Ernie4_5_MoeForCausalLM",),
    model_type="ernie4_5_moe",
    hyperparameters=_hyperparameters,
    tensors=DECODER | ROUTER | SHARED_EXPERT,
    experts=EXPERTS,
    vectors={"blk.{}.exp_probs_b.bias": "model.layers.{}.mlp.moe_statics.e_score_correction_bias"},
    promises={"exp_probs_b.bias": ALWAYS},
    dense_first=("moe_layer_start_index",),
    defaults=DEFAULTS
    | {
        "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28, "num_attention_heads": 20,
        "num_key_value_heads": 4, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": True, "moe_intermediate_size": 1536, "moe_k": 6, "moe_num_experts": 64,
        "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_end_index": -1,
    },
)  # fmt: skip
