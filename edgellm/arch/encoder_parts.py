"""What encoders share: layer norms, attention of a whole text to itself, and heads that make vectors or scores.

An encoder's body makes a hidden state of every token. Those of a text become one row outside of it, by pooling
(`engine.pooling`); its head takes that row. Names are those of llama.cpp, as in `arch.parts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, cast

import numpy as np

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.parts import feed_forward, normalize, project, rope_frequencies, self_attention, token_embedding
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.dataclass import dataclass
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import get_value
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import (
    Activation,
    Graph,
    PlainActivation,
    Rotation,
    Value,
    activate,
    add,
    add_segment,
    embed,
    embed_position,
)

BERT = Style(norm="layer", order="after", activation="gelu_erf", causal=False)
# What GGUF files and config.json call activations.
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu_erf", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
DENSE = ("dense_2", "dense_3")  # linears after pooling, as Sentence Transformers has them


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """An encoder's shape.

    dense:  activations of the linears after pooling, "" for none.
    """

    dense: tuple[str, ...] = ("",) * len(DENSE)


def encoder_config(metadata: Mapping[str, Any], style: Style = BERT, **more: Any) -> EncoderConfig:
    """The hyperparameters that all encoders share; `more` replaces what a family has otherwise."""
    keys = Keys(metadata)
    if get_value(metadata, f"{keys.architecture}.attention.causal", bool, False):
        raise UnsupportedError(f"{keys.architecture}.attention.causal is true; edgellm runs encoders that see all")
    if keys.has("hidden_act"):
        name = get_value(metadata, f"{keys.architecture}.hidden_act", str)
        if name not in ACTIVATIONS:
            raise UnsupportedError(
                f"the activation {name!r:.60} ({keys.architecture}.hidden_act); edgellm knows {', '.join(ACTIVATIONS)}"
            )
        style = style._replace(activation=ACTIVATIONS[name])
    return as_encoder(decoder_config(metadata, style, **more), metadata)


def as_encoder(base: ModelConfig, metadata: Mapping[str, Any]) -> EncoderConfig:
    """The same shape as an encoder's, with what the file says of layers after pooling."""
    shape = {field.name: getattr(base, field.name) for field in fields(base)}
    return EncoderConfig(**shape, dense=tuple(_activation_of_dense(metadata, name) for name in DENSE))


def _activation_of_dense(metadata: Mapping[str, Any], dense: str) -> str:
    key = f"edgellm.{dense}.activation"
    name = get_value(metadata, key, str, "")
    if name not in ("", "tanh", "relu", "gelu_erf", "silu"):
        raise UnsupportedError(f"{key} is {name!r:.60}; edgellm knows tanh, relu, gelu_erf and silu")
    return name


def embed_text(g: Graph, w: Weights, c: ModelConfig) -> Value:
    """Embeddings of tokens, of the part of a pair that they belong to, and of positions where a family learns them."""
    x = embed(g, token_embedding(w, c))
    if w.has("token_types"):
        x = add_segment(x, _segments(w, c))
    if c.style.learnt_positions:
        table = w.take("position_embd", None, c.n_embd)
        if table.shape[0] < c.n_ctx_train:
            raise FormatError(
                f"tensor {table.name!r} has {table.shape[0]} rows; expected one for each of {c.n_ctx_train} positions"
            )
        x = add(x, embed_position(g, table))
    return normalize(w, c, g.name(x, "embd"), "token_embd_norm")


def _segments(w: Weights, c: ModelConfig) -> Tensor:
    """Rows for the first and the second part of a pair of texts; models of one text have one for both."""
    table = w.take("token_types", None, c.n_embd).dequantize()
    if not len(table):
        raise FormatError("tensor 'token_types.weight' has no rows; expected one or two")
    return Tensor.of("token_types.weight", np.repeat(table, 2, axis=0) if len(table) == 1 else table[:2].copy())


def attend(
    w: Weights, c: EncoderConfig, x: Value, rotation: Rotation | None = None, window: int | None = None
) -> Value:
    """Attention to all of a text, or to a window around each token, with its projections."""
    if w.has("attn_q_norm"):  # of whole rows
        c = replace(c, style=c.style._replace(head_norms="rows"))
    return self_attention(w, c, x, rotation, window)


def feed(w: Weights, c: EncoderConfig, x: Value) -> Value:
    """The feed-forward as the file has it: with a gate, with gate and up in one tensor, or without."""
    kind: Literal["gated", "fused", "plain"] = "gated"
    if not w.has("ffn_gate"):
        kind = "fused" if w.n_rows("ffn_up") == 2 * c.n_ff else "plain"
    return feed_forward(w, replace(c, style=c.style._replace(feed_forward=kind)), x)


def post_norm_encoder(g: Graph, w: Weights, c: EncoderConfig, rotation: Rotation | None = None) -> Value:
    """BERT and its like: after each half of a layer, its input is added and the sum normalized."""
    x = embed_text(g, w, c)
    for layer in range(c.n_layers):
        block = w.block(layer)
        h = normalize(block, c, add(x, attend(block, c, x, rotation, c.windows[layer])), "attn_output_norm")
        if block.has("attn_norm_2"):  # of Jina's model of code
            h = normalize(block, c, add(x, h), "attn_norm_2")
        x = normalize(block, c, add(h, feed(block, c, h)), "layer_output_norm")
    return g.output(x)


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
        x = normalize(w, c, x, "cls.norm")
    return project(w, x, "cls.output", w.n_rows("cls.output"))


def rotation_by(c: ModelConfig, base: float) -> Rotation:
    """Rotary embedding of pairs that are half a head apart."""
    return Rotation(rope_frequencies(c, base), interleaved=False)
