"""Gemma 4's layers with experts: they stand beside the feed-forward, with norms of their own around each of both.

The router reads the stream of hidden states itself, and every expert has a number by which its weight is multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import Settings
from edgellm.arch.mixture import Mixture, experts, mixture_hyperparameters, mixture_of, router_logits
from edgellm.arch.parts import dense_feed_forward, normalize
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.graph.nodes import Value, add, rms_norm, scale
from edgellm.graph.nodes.experts import Routing


def mixture(metadata: Mapping[str, Any]) -> Mixture:
    """Raises FormatError for what cannot be."""
    return mixture_of(metadata, Routing(n_used=8))


def hyperparameters(s: Settings) -> dict[str, Any]:
    """GGUF's keys for its experts."""
    return mixture_hyperparameters(s)


def feed_forward_and_experts(w: Weights, c: ModelConfig, x: Value) -> Value:
    """What both make of the stream x, each normalized, added up."""
    assert c.mixture is not None
    made = dense_feed_forward(w, c, normalize(w, c, x, "ffn_norm"))
    made = normalize(w, c, made, "post_ffw_norm_1")
    by = w.scale("ffn_gate_inp", c.n_embd)
    if by is None:
        raise FormatError(f"the file has no tensor {w.named('ffn_gate_inp.scale')!r}, which its architecture needs")
    logits = router_logits(w, c.mixture, scale(rms_norm(x, by, c.epsilon), c.n_embd**-0.5))
    found = experts(w, c, normalize(w, c, x, "pre_ffw_norm_2"), logits, "ffn_moe_out")
    return add(made, normalize(w, c, found, "post_ffw_norm_2"))
