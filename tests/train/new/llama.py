"""A new model as transformers has it: a Llama, or with experts a Mixtral."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from edgellm.train.new.model import NewModel
from edgellm.train.new.shape import Shape

LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
EXPERTS = {"ffn_gate_inp": "mlp.gate.weight", "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
           "ffn_down_exps": "mlp.experts.down_proj"}  # fmt: skip
ONCE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def as_transformers(model: NewModel, shape: Shape) -> LlamaForCausalLM | MixtralForCausalLM:
    """With the same weights; they have rotary pairs in halves, where GGUF has neighbours."""
    kinds = (LlamaConfig, LlamaForCausalLM) if shape.n_experts is None else (MixtralConfig, MixtralForCausalLM)
    experts = {"num_local_experts": shape.n_experts, "num_experts_per_tok": shape.n_experts_used, "head_dim": None,
               "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base}}  # fmt: skip
    config = kinds[0](
        vocab_size=len(model.weights["token_embd.weight"]), hidden_size=shape.n_embd,
        intermediate_size=shape.inner_width[1], **(experts if shape.n_experts else {}),
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads,
        tie_word_embeddings=shape.tied_embeddings, rms_norm_eps=shape.norm_epsilon,
        max_position_embeddings=shape.n_ctx,
    )  # fmt: skip
    theirs = kinds[1](config).eval()
    theirs.set_attn_implementation("eager")
    state = {}
    for name, x in _as_theirs(model.weights).items():
        place, _, inner = name.removesuffix(".weight").rpartition(".")
        if inner in ("attn_q", "attn_k"):
            n_heads = shape.n_heads if inner == "attn_q" else shape.n_kv_heads
            x = x.reshape(n_heads, len(x) // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)
        layer = place.replace("blk.", "model.layers.")
        if inner in EXPERTS:
            state[f"{layer}.{EXPERTS[inner]}"] = torch.tensor(x)
            continue
        state[f"{layer}.{LAYER[inner]}.weight" if place else f"{ONCE[inner]}.weight"] = torch.tensor(x)
    if shape.tied_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    theirs.load_state_dict(state, strict=True)
    return theirs


def _as_theirs(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With gates and ups of experts in one stack."""
    found = {name: x for name, x in weights.items() if not name.endswith(("gate_exps.weight", "up_exps.weight"))}
    for name, gates in weights.items():
        if name.endswith("gate_exps.weight"):
            ups = weights[name.replace("gate_exps", "up_exps")]
            found[name.replace("gate_exps", "gate_up_exps")] = np.concatenate([gates, ups], axis=1)
    return found
