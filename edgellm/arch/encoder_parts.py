"""What encoders share: layer norms, attention of a whole text to itself, and heads that make vectors or scores.

An encoder's body makes a hidden state of every token. Those of a text become one row outside of it, by pooling
(`engine.pooling`); its head takes that row. Names are those of llama.cpp, as in `arch.parts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.parts import layer_output, project, token_embedding
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import get_value
from edgellm.graph.nodes import (
    Activation,
    AttentionSpec,
    Graph,
    PlainActivation,
    Rotation,
    Value,
    activate,
    add,
    add_bias,
    add_embedding,
    attention,
    embed,
    glu,
    keys_values,
    layer_norm,
    linear,
    rope,
)

# What GGUF files and config.json call activations.
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu_erf", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
DENSE = ("dense_2", "dense_3")  # linears after pooling, as Sentence Transformers has them


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """An encoder's shape.

    activation:      of its feed-forward.
    max_alibi_bias:  what the steepest linear bias of attention comes from (ALiBi); 0 is none.
    dense:           activations of the linears after pooling, "" for none.
    """

    activation: Activation = "gelu_erf"
    max_alibi_bias: float = 0.0
    dense: tuple[str, ...] = ("", "")


def encoder_config(metadata: Mapping[str, Any], activation: Activation = "gelu_erf", **more: Any) -> EncoderConfig:
    """The hyperparameters that all encoders share; `more` replaces what a family has otherwise."""
    keys = Keys(metadata)
    if get_value(metadata, f"{keys.architecture}.attention.causal", bool, False):
        raise UnsupportedError(f"{keys.architecture}.attention.causal is true; edgellm runs encoders that see all")
    if keys.has("hidden_act"):
        name = get_value(metadata, f"{keys.architecture}.hidden_act", str)
        if name not in ACTIVATIONS:
            raise UnsupportedError(f"the activation {name!r:.60} ({keys.architecture}.hidden_act); edgellm knows "
                                   f"{', '.join(ACTIVATIONS)}")  # fmt: skip
        activation = ACTIVATIONS[name]
    base = decoder_config(metadata)
    shape = {field.name: getattr(base, field.name) for field in fields(base)}
    dense = tuple(_activation_of_dense(metadata, f"edgellm.{name}.activation") for name in DENSE)
    return EncoderConfig(**(shape | {"activation": activation, "dense": dense} | more))


def _activation_of_dense(metadata: Mapping[str, Any], key: str) -> str:
    name = get_value(metadata, key, str, "")
    if name not in ("", "tanh", "relu", "gelu_erf", "silu"):
        raise UnsupportedError(f"{key} is {name!r:.60}; edgellm knows tanh, relu, gelu_erf and silu")
    return name


def norm(w: Weights, c: ModelConfig, x: Value, name: str, made: str | None = None) -> Value:
    """The layer norm `name`, with a bias where the file has one. made: the name of the value."""
    weight = w.take(name, x.width)
    return layer_norm(x, weight, w.bias(name, x.width), c.epsilon, name=w.named(made or name))


def embed_text(g: Graph, w: Weights, c: ModelConfig, positions: bool) -> Value:
    """Embeddings of tokens, of the part of a pair that they belong to, and of positions where a family learns them."""
    x = embed(g, token_embedding(w, c))
    if w.has("token_types"):
        x = add_embedding(x, _segments(w, c), "segments")
    if positions:
        table = w.take("position_embd", None, c.n_embd)
        if table.shape[0] < c.n_ctx_train:
            raise FormatError(
                f"tensor {table.name!r} has {table.shape[0]} rows; expected one for each of {c.n_ctx_train} positions"
            )
        x = add_embedding(x, table, "positions")
    return norm(w, c, x, "token_embd_norm", "embd")


def _segments(w: Weights, c: ModelConfig) -> Any:
    """Rows for the first and the second part of a pair of texts; models of one text have one for both."""
    from edgellm.formats.tensor import Tensor

    table = w.take("token_types", None, c.n_embd)
    if table.shape[0] != 1:
        return table
    return Tensor.of(table.name, np.repeat(table.dequantize(), 2, axis=0))


def attend(
    w: Weights, c: EncoderConfig, x: Value, rotation: Rotation | None = None, window: int | None = None
) -> Value:
    """Attention to all of a text, or to a window around each token, with its projections.

    Queries, keys and values come from a matrix each or, as in newer checkpoints, from one.
    """
    widths = [c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim]
    if w.has("attn_qkv"):
        q, k, v = project_parts(w, x, "attn_qkv", widths, ("attn_q", "attn_k", "attn_v"))
    else:
        names = ("attn_q", "attn_k", "attn_v")
        q, k, v = (project(w, x, name, width) for name, width in zip(names, widths, strict=True))
    if w.has("attn_q_norm"):
        q, k = norm(w, c, q, "attn_q_norm"), norm(w, c, k, "attn_k_norm")
    if rotation is not None:
        q, k = rope(q, c.n_heads, rotation), rope(k, c.n_kv_heads, rotation)
    alibi = alibi_slopes(c.n_heads, c.max_alibi_bias) if c.max_alibi_bias else None
    spec = AttentionSpec(c.attention_scale, causal=False, window=window, alibi=alibi)
    kv = keys_values(k, v, c.n_kv_heads, cached=False)
    return project(w, attention(q, kv, c.n_heads, spec, name=w.named("kqv_out")), "attn_output", c.n_embd, "attn_out")


def project_parts(w: Weights, x: Value, name: str, widths: list[int], made: tuple[str, ...]) -> list[Value]:
    """W x in parts, for a weight `name` that has the rows of several linears; each with its part of the bias."""
    weights, biases = w.take_parts(name, widths, x.width), w.bias_parts(name, widths)
    results = []
    for weight, bias, value_name in zip(weights, biases, made, strict=True):
        named = w.named(value_name)
        y = linear(x, weight, name=named if bias is None else "")
        results.append(y if bias is None else add_bias(y, bias, name=named))
    return results


def feed_forward(w: Weights, c: EncoderConfig, x: Value) -> Value:
    """down(activation(up x)); or gated, where the file has a gate or an `ffn_up` that holds gate and up together."""
    if w.has("ffn_gate"):
        gate, up = project(w, x, "ffn_gate", c.n_ff), project(w, x, "ffn_up", c.n_ff)
    elif w.n_rows("ffn_up") == 2 * c.n_ff:
        gate, up = project_parts(w, x, "ffn_up", [c.n_ff] * 2, ("ffn_gate", "ffn_up"))
    else:
        h = activate(project(w, x, "ffn_up", c.n_ff), c.activation, name=w.named("ffn_act"))
        return project(w, h, "ffn_down", c.n_embd, "ffn_out")
    return project(w, glu(gate, up, c.activation, name=w.named("ffn_act")), "ffn_down", c.n_embd, "ffn_out")


def post_norm_encoder(g: Graph, w: Weights, c: EncoderConfig, x: Value, rotation: Rotation | None = None) -> Value:
    """The layers of BERT and its like: after each half of a layer, its input is added and the sum normalized."""
    for layer in range(c.n_layers):
        block = w.block(layer)
        h = norm(block, c, add(x, attend(block, c, x, rotation, c.windows[layer])), "attn_output_norm")
        if block.has("attn_norm_2"):  # of Jina's model of code
            h = norm(block, c, add(x, h), "attn_norm_2")
        x = add(h, feed_forward(block, c, h))
        x = norm(block, c, x, "layer_output_norm", layer_output(block, c, layer).removeprefix(block.named("")))
    return g.output(x)


def alibi_slopes(n_heads: int, max_bias: float) -> np.ndarray:
    """float32 [n_heads]: falling powers of two, and for heads beyond a power of two some of those between."""
    n = 1 << (n_heads.bit_length() - 1)
    slopes = [2 ** (-max_bias / n * (head + 1)) for head in range(n)]
    between = [2 ** (-max_bias / 2 / n * (2 * head + 1)) for head in range(n_heads - n)]
    return np.array(slopes + between, np.float32)


# --- after pooling --------------------------------------------------------------------------------------------


def embedding_head(g: Graph, w: Weights, c: ModelConfig, pooled: Value) -> Value:
    """What becomes of a pooled text: the scores of a classifier, or a vector, through the dense layers there are.

    A decoder may have it too, when it was trained to make vectors.
    """
    if w.has("cls") or w.has("cls.output"):
        return g.output(_classify(w, c, pooled))
    x = pooled
    activations = c.dense if isinstance(c, EncoderConfig) else ("",) * len(DENSE)
    for name, activation in zip(DENSE, activations, strict=True):
        if w.has(name):
            x = project(w, x, name, w.n_rows(name))
            x = activate(x, cast(PlainActivation, activation)) if activation else x
    return g.output(x)


def _classify(w: Weights, c: ModelConfig, x: Value) -> Value:
    """Scores of a text, or of a pair, by the class that it may have."""
    if w.has("cls"):
        x = project(w, x, "cls", w.n_rows("cls"))
        if not w.has("cls.output"):
            return x
        # ModernBERT normalizes what its activation makes, all others have tanh.
        x = activate(x, "gelu_erf" if w.has("cls.norm") else "tanh")
    if w.has("cls.norm"):
        x = norm(w, c, x, "cls.norm")
    return project(w, x, "cls.output", w.n_rows("cls.output"))


def rotation_by(c: ModelConfig, base: float) -> Rotation:
    """Rotary embedding of pairs that are half a head apart."""
    frequencies = base ** (-np.arange(0, c.n_rot, 2) / c.n_rot) / c.rope_scale
    return Rotation(frequencies, interleaved=False)
