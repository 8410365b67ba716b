"""Gemma 3 (Google, 2025), text only.

Norms before and after each half of a layer and on every query and key head, embeddings scaled by
sqrt(n_embd), GELU-gated feed-forward. Five layers with a sliding window and a short rotary base are followed
by one that sees everything, with a long base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.parts import (
    gated_feed_forward,
    logits_head,
    rope_frequencies,
    self_attention,
    token_embedding,
)
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.graph import Graph, Value
from edgellm.graph.builder import Rope

LAYERS_PER_GLOBAL = 6
LOCAL_ROPE_BASE = 10000.0
# The 27B model alone scales its queries by the width per head instead of the heads' own size.
LAYERS_OF_27B = 62


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    if keys.count("block_count") == LAYERS_OF_27B:
        raise UnsupportedError("gemma3 with 62 layers (27B) scales its queries in its own way; smaller sizes run")
    return decoder_config(
        metadata,
        window=keys.count("attention.sliding_window"),
        rope_base_local=keys.number("rope.freq_base_swa", LOCAL_ROPE_BASE),
    )


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    rope_global = Rope(rope_frequencies(c, c.rope_base, c.rope_scale), interleaved=False)
    rope_local = Rope(rope_frequencies(c, c.rope_base_local or LOCAL_ROPE_BASE), interleaved=False)
    x = g.embed(token_embedding(w, c), scale=math.sqrt(c.n_embd))
    for layer in range(c.n_layers):
        block = w.block(layer)
        is_global = (layer + 1) % LAYERS_PER_GLOBAL == 0
        h = g.rms_norm(x, block.take("attn_norm", c.n_embd), c.epsilon)
        h = self_attention(
            g,
            block,
            c,
            h,
            rope_global if is_global else rope_local,
            None if is_global else c.window,
            head_norms=True,
        )
        x = g.add(x, g.rms_norm(h, block.take("post_attention_norm", c.n_embd), c.epsilon))
        h = g.rms_norm(x, block.take("ffn_norm", c.n_embd), c.epsilon)
        h = gated_feed_forward(g, block, c, h, "gelu")
        x = g.add(x, g.rms_norm(h, block.take("post_ffw_norm", c.n_embd), c.epsilon))
    return g.output(x, "hidden")


head = logits_head
