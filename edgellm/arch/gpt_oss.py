"""gpt-oss (OpenAI, 2025): experts with biases and a clamped gate, sinks in the softmax of attention, every other layer
with a window, and YaRN whose ramp begins and ends between pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, all_but_every, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DECODER,
    DEFAULTS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    layer_types,
    window_hyperparameters,
)
from edgellm.arch.huggingface_rope import BY_FORMULA, rope_settings
from edgellm.arch.mixture import mixture_hyperparameters, mixture_of
from edgellm.arch.parts import logits_head
from edgellm.arch.promises import ALWAYS
from edgellm.arch.rope import frequencies
from edgellm.arch.stacks import Experts
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.graph.nodes import Graph, Rotation, Value
from edgellm.graph.nodes.experts import Routing

STYLE = Style(activation="clamped_swiglu", sinks=True, feed_forward_norm="post_attention_norm")
WINDOW_PERIOD = 2  # of so many layers, the last sees everything
_MLP = "model.layers.{}.mlp."


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    return decoder_config(
        metadata,
        STYLE,
        windows=keys.windows(keys.count("block_count"), WINDOW_PERIOD),
        mixture=mixture_of(metadata, Routing(n_used=4, scoring="logits", normalize=False)),
    )


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    turned = frequencies(c.rope_base, c.n_rot, c.scaling, c.n_ctx, truncate=False)
    magnitude = c.scaling.magnitude * c.scaling.yarn_magnitude
    return decoder(g, w, c, Rotation(turned, interleaved=False, magnitude=magnitude))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    s.expect("swiglu_alpha", 1.702)
    s.expect("swiglu_limit", 7.0)
    rope = rope_settings(s, BY_FORMULA)
    if rope.get("rope_type") == "yarn" and rope.get("truncate", True) is not False:
        raise UnsupportedError(f"{rope.file}: truncate is not false; edgellm runs this family with an exact ramp")
    rope.values.pop("truncate", None)
    shape = decoder_hyperparameters(s, rope) | mixture_hyperparameters(s, n_ff=None)
    shape["expert_feed_forward_length"] = shape["feed_forward_length"]
    n_layers = shape["block_count"]
    slides = layer_types(s, n_layers) or all_but_every(WINDOW_PERIOD, n_layers)
    return shape | window_hyperparameters(s.count("sliding_window"), slides, WINDOW_PERIOD)


YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096, "rope_theta": 150000.0}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes=("GptOssForCausalLM",),
    model_type="gpt_oss",
    hyperparameters=_hyperparameters,
    tensors={ours: theirs for ours, theirs in DECODER.items() if ours != "blk.{}.ffn_norm"}
    | {
        "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_gate_inp": _MLP + "router",
    },
    experts={
        "blk.{}.ffn_gate_exps": Experts(None, _MLP + "experts.gate_up_proj", part=0, n_parts=2, is_across=True),
        "blk.{}.ffn_up_exps": Experts(None, _MLP + "experts.gate_up_proj", part=1, n_parts=2, is_across=True),
        "blk.{}.ffn_down_exps": Experts(None, _MLP + "experts.down_proj", is_across=True),
    },
    vectors={"blk.{}.attn_sinks.weight": "model.layers.{}.self_attn.sinks"},
    biases=ATTENTION_BIASES | {"ffn_gate_inp": None},
    promises={f"ffn_{part}_exps.bias": ALWAYS for part in ("gate", "up", "down")},
    defaults=DEFAULTS
    | {
        "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128, "attention_bias": True,
        "rope_parameters": YARN, "rope_theta": YARN["rope_theta"],
    },
)  # fmt: skip
