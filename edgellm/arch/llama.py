"""Llama (Touvron et al., 2023) and its like: Llama 1 to 3.2, TinyLlama, SmolLM, Mistral without window.

Norm before each half of a layer, rotary positions on neighbouring pairs (the converter has permuted the
projections for it), SiLU-gated feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.parts import (
    gated_feed_forward,
    logits_head,
    rope_frequencies,
    self_attention,
    token_embedding,
)
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.graph import Graph, Value
from edgellm.graph.builder import Rope


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    # Llama 3 slows down its long wavelengths by factors that the file holds as a tensor.
    factors = w.take("rope_freqs", c.n_rot // 2).dequantize() if w.has("rope_freqs") else None
    if factors is not None and not (np.isfinite(factors) & (factors > 0)).all():
        raise FormatError("tensor 'rope_freqs.weight' holds something else than positive numbers")
    rope = Rope(rope_frequencies(c, c.rope_base, c.rope_scale, factors), interleaved=True)
    x = g.embed(token_embedding(w, c))
    for layer in range(c.n_layers):
        block = w.block(layer)
        h = g.rms_norm(x, block.take("attn_norm", c.n_embd), c.epsilon)
        x = g.add(x, self_attention(g, block, c, h, rope))
        h = g.rms_norm(x, block.take("ffn_norm", c.n_embd), c.epsilon)
        x = g.add(x, gated_feed_forward(g, block, c, h, "silu"))
    return g.output(x, "hidden")


head = logits_head
