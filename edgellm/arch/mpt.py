"""MPT (MosaicML, 2023): linear biases in place of positions (ALiBi), and no biases anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import HuggingFace, Settings, decoder_hyperparameters
from edgellm.arch.parts import logits_head
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(norm="layer", feed_forward="plain", activation="gelu_erf")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE, max_alibi_bias=Keys(metadata).number("attention.max_alibi_bias", zero=0.0))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, None)


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("logit_scale", None)
    s.expect("no_bias", True)
    attention = s.section("attn_config")
    for name, *expected in (("attn_type", "multihead_attention"), ("qk_ln", False), ("clip_qkv", None),
                            ("prefix_lm", False), ("alibi", True),
                            # The models' own code reads it, and transformers computes with 8 whatever it is.
                            ("alibi_bias_max", 8)):  # fmt: skip
        attention.expect(name, *expected)
    s.expect("expansion_ratio", 4)
    s.values["intermediate_size"] = 4 * s.count("hidden_size")
    s.values["num_key_value_heads"] = s.count("num_attention_heads")
    shape = decoder_hyperparameters(s, norm="layer", shares=True) | {
        "attention.max_alibi_bias": attention.number("alibi_bias_max", 8.0)
    }
    if attention.get("softmax_scale") is not None:
        shape["attention.scale"] = attention.number("softmax_scale")
    return {name: value for name, value in shape.items() if not name.startswith("rope.")}


HUGGING_FACE = HuggingFace(
    classes=("MptForCausalLM", "MPTForCausalLM"),
    model_type="mpt",
    hyperparameters=_hyperparameters,
    aliases={
        "d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
        "max_seq_len": "max_position_embeddings", "layer_norm_epsilon": "layer_norm_eps",
    },
    first=("layer_norm_epsilon",),
    tensors={
        "token_embd": "transformer.wte",
        "output_norm": "transformer.norm_f",
        "output": "lm_head",
        "blk.{}.attn_norm": "transformer.blocks.{}.norm_1",
        "blk.{}.attn_qkv": "transformer.blocks.{}.attn.Wqkv",
        "blk.{}.attn_output": "transformer.blocks.{}.attn.out_proj",
        "blk.{}.ffn_norm": "transformer.blocks.{}.norm_2",
        "blk.{}.ffn_up": "transformer.blocks.{}.ffn.up_proj",
        "blk.{}.ffn_down": "transformer.blocks.{}.ffn.down_proj",
    },
    defaults={
        "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": True,
    },
)  # fmt: skip
