"""What layers of Gemma 3n and 4 share: keys and values of a layer below, and embeddings that each has a part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import Settings
from edgellm.arch.parts import normalize, project, token_embedding
from edgellm.arch.promises import Promise
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import (
    AttentionSpec,
    Graph,
    Rotation,
    Value,
    add,
    attention,
    columns,
    embed,
    keys_values,
    linear,
    rms_norm,
    rope,
    scale,
)


def sharing_hyperparameters(s: Settings, slides: list[bool], sliding: Settings) -> dict[str, Any]:
    """GGUF's keys for what both say in config.json.

    slides:   which layers have a window. sliding: the rotary embedding of these.
    """
    cap = s.get("final_logit_softcapping")
    return {
        "attention.sliding_window": s.count("sliding_window"),
        "attention.sliding_window_pattern": slides,
        "attention.shared_kv_layers": s.count("num_kv_shared_layers", 0, least=0),
        "rope.freq_base_swa": sliding.number("rope_theta"),
        "final_logit_softcapping": 0.0 if cap is None else s.number("final_logit_softcapping"),
    }


def own_values(keys_are_values: Callable[[Settings, int], bool] = lambda s, layer: False, *keys: str) -> Promise:
    """A layer has values of its own unless its keys are its values, which `keys` say; shared ones may have unread."""

    def holds(s: Settings, layer: int) -> bool | None:
        first_shared = s.count("num_hidden_layers") - s.count("num_kv_shared_layers", 0, least=0)
        return not keys_are_values(s, layer) if layer < first_shared else None

    return Promise(holds, keys)


class LastOfKind:
    """Keys and values of the last layer of each kind, with a window and without, that has its own."""

    def __init__(self, c: ModelConfig) -> None:
        self.first_shared = c.n_layers - c.n_shared_layers
        self.of_kind: dict[bool, Value] = {}


def attention_of_shared(
    w: Weights, c: ModelConfig, x: Value, rotation: Rotation, last: LastOfKind, layer: int
) -> Value:
    """Attention whose upper layers look at what the last layer of their kind below kept; c is the layer's own shape.

    Queries and keys are normalized, and so are values, without weights. Without `attn_v`, values are the keys as they
    were before all that.
    """
    window = c.windows[layer]
    q = normalize(w, c, project(w, x, "attn_q", c.n_heads * c.head_dim), "attn_q_norm", c.n_heads)
    q = rope(q, c.n_heads, rotation)
    if layer < last.first_shared:
        k = project(w, x, "attn_k", c.n_kv_heads * c.head_dim)
        v = project(w, x, "attn_v", c.n_kv_heads * c.value_dim) if w.has("attn_v") else k
        k = rope(normalize(w, c, k, "attn_k_norm", c.n_kv_heads), c.n_kv_heads, rotation)
        ones = Tensor.of("ones", np.ones(c.value_dim, np.float32))
        v = rms_norm(v, ones, c.epsilon, c.n_kv_heads)
        last.of_kind[window is None] = keys_values(k, v, c.n_kv_heads)
    else:
        w.pass_over("attn_k", "attn_v", "attn_k_norm")  # which files may hold, and nothing reads
        if (window is None) not in last.of_kind:
            raise FormatError(
                f"{c.architecture}.attention.shared_kv_layers is {c.n_shared_layers}, and layer {layer} has no layer "
                "of its kind below whose keys and values it could share"
            )
    spec = AttentionSpec(c.attention_scale, window=window)
    heads = attention(q, last.of_kind[window is None], c.n_heads, spec, name=w.named("kqv_out"))
    return project(w, heads, "attn_output", c.n_embd, "attn_out")


class PerLayer:
    """A small embedding of the token for each layer, with what the token's ordinary embedding says to that layer."""

    def __init__(self, g: Graph, w: Weights, c: ModelConfig, x: Value) -> None:
        self.width = size = c.n_embd_per_layer
        n_vocab = token_embedding(w, c).shape[0]
        own = embed(g, w.take("per_layer_token_embd", n_vocab, c.n_layers * size), size**0.5)
        said = scale(linear(x, w.take("per_layer_model_proj", c.n_layers * size, c.n_embd)), c.n_embd**-0.5)
        said = rms_norm(said, w.take("per_layer_proj_norm", size), c.epsilon, c.n_layers)
        self.all = scale(add(said, own), 0.5**0.5)

    def of(self, layer: int) -> Value:
        return columns(self.all, layer * self.width, self.width)
