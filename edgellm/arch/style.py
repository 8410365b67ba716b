"""What the layers of a family are made of, where that is not a matter of numbers."""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgellm.graph.nodes import Activation


class Style(NamedTuple):
    """How a family's layers differ from Llama's, which are the defaults.

    norm:          "rms" is the root mean square norm, "layer" the one with means, and with biases where the file has
                   them.
    order:         where norms stand: "before" attention and feed-forward, "after" them, or "both". "parallel": both
                   read what the layer was given, each through its own norm; "shared": through one norm.
    feed_forward:  "gated" is down(activation(gate x) * up x), "fused" the same with gate and up in one tensor, and
                   "plain" down(activation(up x)).
    head_norms:    norms of queries and keys: of every "heads", or of "rows" as a whole, before they are turned; or of
                   heads "turned" already.
    inner_norms:   also before the last linear of attention and of feed-forward (BitNet).
    sinks:         every head has a score that takes its share of the softmax and gives nothing.
    feed_forward_norm:  what the norm before the feed-forward is called.
    learnt_positions:  each position has an embedding of its own. embedding_norm: embeddings are normalized.
    causal:        a token sees itself and those before it; otherwise all of its text, and there is no cache.
    """

    norm: Literal["rms", "layer"] = "rms"
    order: Literal["before", "after", "both", "parallel", "shared"] = "before"
    feed_forward: Literal["gated", "fused", "plain"] = "gated"
    activation: Activation = "silu"
    head_norms: Literal["heads", "rows", "turned"] | None = None
    inner_norms: bool = False
    sinks: bool = False
    feed_forward_norm: str = "ffn_norm"
    output_norm: str = "output_norm"
    learnt_positions: bool = False
    embedding_norm: bool = False
    causal: bool = True


LLAMA = Style()

# The names that config.json has for activations. A file says under `hidden_act` where it is not its family's usual one.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
}
