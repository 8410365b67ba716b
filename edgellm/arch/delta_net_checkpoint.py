"""What checkpoints with gated delta nets look like on Hugging Face (Qwen 3.5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch.config import ModelConfig
from edgellm.arch.delta_net import INTERVAL, MOST_DIM, MOST_HEADS, MOST_TAPS, VALUE_STEP, DeltaNet
from edgellm.arch.huggingface import DECODER, HEAD_NORMS, Settings, decoder_hyperparameters
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.errors import FormatError, UnsupportedError

_NET = "model.layers.{}.linear_attn."
TENSORS = {ours: theirs for ours, theirs in DECODER.items() if ours != "blk.{}.ffn_norm"} | HEAD_NORMS | {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.attn_qkv": _NET + "in_proj_qkv",
    "blk.{}.attn_gate": _NET + "in_proj_z",
    "blk.{}.ssm_alpha": _NET + "in_proj_a",
    "blk.{}.ssm_beta": _NET + "in_proj_b",
    "blk.{}.ssm_conv1d": _NET + "conv1d",
    "blk.{}.ssm_norm": _NET + "norm",
    "blk.{}.ssm_out": _NET + "out_proj",
}  # fmt: skip
VECTORS = {"blk.{}.ssm_a": _NET + "A_log", "blk.{}.ssm_dt.bias": _NET + "dt_bias"}
# Norms hold what they differ from one, but for that of a delta net.
OFFSETS = dict.fromkeys(("attn_norm", "post_attention_norm", "output_norm", "attn_q_norm", "attn_k_norm"), 1.0)
CHANGED = {"ssm_a": lambda x: -np.exp(x)}
DEFAULTS = {
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "head_dim": 256, "max_position_embeddings": 32768,
    "num_attention_heads": 16, "partial_rotary_factor": 0.25, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
KINDS = {"linear_attention": True, "full_attention": False}
SECTIONS = [11, 11, 10]  # of pairs, for time, height and width of images; those of a text are all its position


def partial_rope(s: Settings) -> Settings:
    return rope_settings(s, partial=True)


def row_order(part: str, c: ModelConfig) -> NDArray[np.int32] | None:
    """Heads of values as GGUF has them."""
    net = c.recurrent
    if not isinstance(net, DeltaNet) or net.n_heads == net.n_key_heads:
        return None
    if part in ("attn_qkv", "ssm_conv1d"):
        n_before = 2 * net.n_key_heads * net.key_dim
        return np.concatenate([np.arange(n_before, dtype=np.int32), n_before + net.tiled(net.value_dim)])
    if part == "attn_gate":
        return net.tiled(net.value_dim)
    return net.tiled(1) if part in ("ssm_alpha", "ssm_beta", "ssm_a", "ssm_dt") else None


def column_order(part: str, c: ModelConfig) -> NDArray[np.int32] | None:
    net = c.recurrent
    if part != "ssm_out" or not isinstance(net, DeltaNet) or net.n_heads == net.n_key_heads:
        return None
    return net.tiled(net.value_dim)


def delta_net_hyperparameters(s: Settings) -> dict[str, Any]:
    """Which layers are recurrent is said for each, and by equal steps, as programs read it that are older."""
    s.expect("hidden_act", "silu")
    rope = partial_rope(s)
    shape = decoder_hyperparameters(s, rope)
    n_layers = shape["block_count"]
    interval = s.count("full_attention_interval", INTERVAL)
    usual = ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(n_layers)]
    kinds = s.get("layer_types", usual)
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise FormatError(f"config.json: layer_types is {kinds!r:.60}; expected a name for each of {n_layers} layers")
    if unknown := [kind for kind in kinds if kind not in tuple(KINDS)]:
        raise UnsupportedError(f"config.json: a layer of type {unknown[0]!r:.60}; edgellm runs {', '.join(KINDS)}")
    interval = kinds.index("full_attention") + 1 if "full_attention" in kinds else n_layers + 1
    sections = rope.get("mrope_section", SECTIONS)
    if not isinstance(sections, list) or not all(type(n) is int and 0 <= n < 1 << 16 for n in sections):
        raise FormatError(f"config.json: mrope_section is {sections!r:.60}; expected three whole numbers")
    n_heads = s.count("linear_num_value_heads", most=MOST_HEADS)
    if (value_dim := s.count("linear_value_head_dim", most=MOST_DIM)) % VALUE_STEP:
        raise UnsupportedError(
            f"{s.file}: linear_value_head_dim is {value_dim}; edgellm runs multiples of {VALUE_STEP} here"
        )
    return shape | {
        "full_attention_interval": interval,
        "attention.recurrent_layers": [KINDS[kind] for kind in kinds],
        "rope.dimension_sections": (sections + [0] * 4)[:4],
        "ssm.conv_kernel": s.count("linear_conv_kernel_dim", most=MOST_TAPS, least=2),
        "ssm.state_size": s.count("linear_key_head_dim", most=MOST_DIM),
        "ssm.group_count": s.count("linear_num_key_heads", most=MOST_HEADS),
        "ssm.time_step_rank": n_heads,
        "ssm.inner_size": n_heads * value_dim,
    }
