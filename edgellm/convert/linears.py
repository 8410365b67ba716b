"""Which tensors of a model are the weights of linears, and so worth quantizing, whatever its family.

Quantizing takes files of families that edgellm cannot run. So what stays as it is goes by rules that hold for all: by
the names that GGUF gives, and for names that nobody knows yet by shape.
"""

from __future__ import annotations

import re

from edgellm.convert.parts import Part

LEAST_SIDE = 32  # of a matrix with an unknown name; routers, convolutions and low ranks have fewer rows or columns

# Linears by their names in a layer, of which even small ones are quantized; experts are a stack of them.
_LINEARS = re.compile(
    r"(token_embd|output|attn_(q|k|v|qkv|output|out)|cross_attn_(q|k|v|o)|attn_o|ffn_(gate|up|down|gate_up))"
    r"(_exps|_chexps|_shexp)?"
)
# What decides or mixes rather than computes: a small error there turns into a large one, and few bytes are won.
_NEVER = re.compile(
    r"norm|router|gate_inp|altup|laurel|per_layer_model_proj"  # routers, mixes of streams
    r"|^cls\b"  # classifiers
    r"|conv(?!.*_proj)|patch_embd"  # convolutions; the projections around them are linears
    r"|pos(ition)?_(emb|embd|bias)|token_types|attn_rel|rope_|linear_pos"  # where a token stands
    r"|ssm_(?!in\b|out\b)|time_mix_(?!key\b|value\b|receptance\b|gate\b|output\b)|_lerp"  # states and what steers them
)


def is_matrix(part: Part) -> bool:
    """Whether a tensor can be quantized: a weight of two dimensions or more, or an adapter's half of one."""
    return len(part.tensor.shape) > 1 and part.name.endswith((".weight", ".lora_a", ".lora_b"))


def is_linear(part: Part) -> bool:
    """Whether recipes quantize a tensor: a linear's weight [n_out, n_in], or experts' [n_experts, n_out, n_in]."""
    if part.name.endswith((".lora_a", ".lora_b")):
        return is_matrix(part)
    if not is_matrix(part) or _NEVER.search(part.name) or len(part.tensor.shape) > 3:
        return False
    return bool(_LINEARS.fullmatch(role_of(part.name))) or min(part.tensor.shape[-2:]) >= LEAST_SIDE


def role_of(name: str) -> str:
    """What a tensor is in its layer: "attn_q" for "blk.0.attn_q.weight", "token_embd" for "token_embd.weight"."""
    return re.sub(r"^((enc|dec|v|a)\.)?(blk\.\d+\.)?|\.weight$", "", name)
