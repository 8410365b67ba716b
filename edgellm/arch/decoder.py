"""The forward pass of Llama and of the many families that differ from it in a few things, see `Style`."""

from __future__ import annotations

from edgellm.arch.config import ModelConfig
from edgellm.arch.parts import embeddings, feed_forward, layer_output, normalize, self_attention
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Rotation, Value, add, scale


def decoder(g: Graph, w: Weights, c: ModelConfig, rotation: Rotation | None, nearby: Rotation | None = None) -> Value:
    """Token ids to hidden states.

    rotation:  what turns queries and keys, in the layers that `c.rotates` names; None turns nothing.
    nearby:    that of layers with a window, where it is another.
    """
    x = embeddings(g, w, c)
    for layer in range(c.n_layers):
        turn = nearby if nearby is not None and c.windows[layer] is not None else rotation
        x = decoder_layer(w.block(layer), c, layer, x, turn if c.rotates[layer] else None)
    return g.output(x)


def decoder_layer(block: Weights, c: ModelConfig, layer: int, x: Value, rotation: Rotation | None) -> Value:
    """A layer adds to the stream of hidden states twice: what its attention found, and what its feed-forward made."""
    order, window = c.style.order, c.windows[layer]
    before, after = order != "after", order in ("after", "both")
    h = normalize(block, c, x, "attn_norm") if before else x
    found = self_attention(block, c, h, rotation, window)
    if order in ("parallel", "shared"):
        made = feed_forward(block, c, h if order == "shared" else normalize(block, c, x, "ffn_norm"))
        x = add(x, found, name=block.named("ffn_inp"))
        return add(x, made, name=layer_output(block, c, layer))
    x = _added(block, c, x, found, "post_attention_norm" if after else None, block.named("ffn_inp"))
    h = normalize(block, c, x, c.style.feed_forward_norm) if before else x
    made = feed_forward(block, c, h)
    return _added(block, c, x, made, "post_ffw_norm" if after else None, layer_output(block, c, layer))


def _added(w: Weights, c: ModelConfig, x: Value, found: Value, norm: str | None, name: str) -> Value:
    """The stream with what was found, normalized and scaled as the family has it."""
    if norm is not None:
        found = normalize(w, c, found, norm)
    if c.residual_scale != 1:
        found = scale(found, c.residual_scale)
    return add(x, found, name=name)
