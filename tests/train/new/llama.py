"""A new model as transformers has it."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgellm.train.new.model import NewModel
from edgellm.train.new.shape import Shape

LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
ONCE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def as_transformers(model: NewModel, shape: Shape) -> LlamaForCausalLM:
    """With the same weights; they have rotary pairs in halves, where GGUF has neighbours."""
    config = LlamaConfig(
        vocab_size=len(model.weights["token_embd.weight"]), hidden_size=shape.n_embd, intermediate_size=shape.n_ff,
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads,
        tie_word_embeddings=shape.tied_embeddings, rms_norm_eps=shape.norm_epsilon,
        max_position_embeddings=shape.n_ctx,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    state = {}
    for name, x in model.weights.items():
        place, _, inner = name.removesuffix(".weight").rpartition(".")
        if inner in ("attn_q", "attn_k"):
            n_heads = shape.n_heads if inner == "attn_q" else shape.n_kv_heads
            x = x.reshape(n_heads, len(x) // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)
        layer = place.replace("blk.", "model.layers.")
        state[f"{layer}.{LAYER[inner]}.weight" if place else f"{ONCE[inner]}.weight"] = torch.tensor(x)
    if shape.tied_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    theirs.load_state_dict(state, strict=True)
    return theirs
