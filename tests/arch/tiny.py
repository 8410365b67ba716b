"""Models of a few thousand random weights: made by transformers, written as GGUF the way converters write them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from edgellm.formats.gguf import GGUFWriter
from edgellm.quants import FORMATS

torch.set_num_threads(1)

N_VOCAB = 320
BOS, EOS = 1, 2


def _attention_to_halves(module, query, key, value, *args, **kwargs):
    """transformers' attention to keys and values that were stored in float16, as edgellm stores them."""
    key, value = key.half().float(), value.half().float()
    return sdpa_attention_forward(module, query, key, value, *args, **kwargs)


AttentionInterface.register("halves", _attention_to_halves)
AttentionMaskInterface.register("halves", sdpa_mask)


@dataclass
class Checkpoint:
    """A model as transformers has it, and the metadata and tensors [float32] that its GGUF file holds."""

    model: Any
    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def save(self, path: Path, format_name: str = "F32") -> Path:
        """Matrices in the given format, the rest in F32."""
        entries = []
        for name, x in self.tensors.items():
            block_format = FORMATS[format_name if x.ndim == 2 else "F32"]
            entries.append((name, x.shape, block_format, block_format.quantize(x) if x.ndim == 2 else x))
        GGUFWriter(path, self.metadata, entries).write()
        return path

    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 [n_tokens, n_vocab] by transformers."""
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].numpy()


def llama(**changes: Any) -> Checkpoint:
    """A Llama of two layers with grouped heads."""
    settings: dict[str, Any] = {
        "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
        "attn_implementation": "halves", "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    config = LlamaConfig(**(settings | changes))
    model = _randomized(LlamaForCausalLM(config), norm_mean=1.0)
    rope = config.rope_parameters
    metadata = _metadata("llama", config) | {
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] == "linear":
        metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float(rope["factor"])}
    tensors = _tensors(model, _LAYER)
    if rope["rope_type"] == "llama3":
        # transformers keeps the frequencies, GGUF what they are divided by.
        plain = rope["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        tensors["rope_freqs.weight"] = np.float32(plain / model.model.rotary_emb.inv_freq.numpy())
    for name, x in tensors.items():
        if name.endswith("attn_q.weight"):
            tensors[name] = _paired(x, config.num_attention_heads)
        if name.endswith("attn_k.weight"):
            tensors[name] = _paired(x, config.num_key_value_heads)
    return Checkpoint(model, metadata, tensors)


def gemma3(**changes: Any) -> Checkpoint:
    """A Gemma 3 of eight layers, of which the sixth alone sees more than a window of 48 positions."""
    settings: dict[str, Any] = {
        "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32,
        "max_position_embeddings": 1024, "sliding_window": 48, "attn_implementation": "halves", "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }  # fmt: skip
    config = Gemma3TextConfig(**(settings | changes))
    model = _randomized(Gemma3ForCausalLM(config), norm_mean=0.0)
    rope = config.rope_parameters["full_attention"]
    metadata = _metadata("gemma3", config) | {
        "gemma3.attention.key_length": config.head_dim,
        "gemma3.attention.value_length": config.head_dim,
        "gemma3.attention.sliding_window": config.sliding_window,
        "gemma3.rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] == "linear":
        metadata |= {
            "gemma3.rope.scaling.type": "linear",
            "gemma3.rope.scaling.factor": float(rope["factor"]),
        }
    tensors = _tensors(model, _LAYER | _GEMMA3_LAYER)
    for name, x in tensors.items():
        if name.endswith("norm.weight"):
            tensors[name] = x + 1
    return Checkpoint(model, metadata, tensors)


# GGUF's names of a layer's tensors, and those of transformers.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_LAYER = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _randomized(model: Any, norm_mean: float) -> Any:
    """Weights that neither vanish nor explode, the same in every run; logits of a few units."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.ndim == 1:
                x.normal_(norm_mean, 0.2, generator=generator)
            else:
                deviation = 0.5 if "embed_tokens" in name else 1.5 / math.sqrt(x.shape[1])
                x.normal_(0, deviation, generator=generator)
    return model.eval()


def _metadata(architecture: str, config: Any) -> dict[str, Any]:
    shape = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    return {"general.architecture": architecture} | {f"{architecture}.{k}": v for k, v in shape.items()} | vocabulary()


def vocabulary(n: int = N_VOCAB) -> dict[str, Any]:
    """A SentencePiece vocabulary: specials, all bytes, then words of falling score."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    words = ["▁", *"etaoinsrhl", "▁t", "he", "▁the", "in", "▁a"]
    tokens += words + [f"▁w{i}" for i in range(n - len(tokens) - len(words))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(types) + [-float(i) for i in range(n - len(types))],
        "tokenizer.ggml.token_type": types + [1] * (n - len(types)),
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _tensors(model: Any, layer: dict[str, str]) -> dict[str, np.ndarray]:
    """The weights by GGUF's names, as transformers has them."""
    state = {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    for i in range(model.config.num_hidden_layers):
        for ours, theirs in layer.items():
            tensors[f"blk.{i}.{ours}.weight"] = state[f"model.layers.{i}.{theirs}.weight"]
    return tensors


def _paired(x: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of each head reordered so that rotary pairs are neighbours, not half a head apart."""
    return x.reshape(n_heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
