"""Gemma 3n (Google, 2025), text only.

As Gemma 3 with what Gemma 4 kept: upper layers look at keys and values of a layer below, and each layer has a small
embedding of the token of its own. Beside: several streams of hidden states, of which a layer computes one and predicts
the others (AltUp; Baykal et al., 2023), a short cut of low rank around attention (Laurel), and feed-forwards of which
in the lower layers only the largest gates count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgellm.arch import gemma3
from edgellm.arch.config import Keys, ModelConfig, all_but_every
from edgellm.arch.gemma2 import POST_NORMS
from edgellm.arch.gemma4 import PER_LAYER
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DECODER,
    DEFAULTS,
    HEAD_NORMS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    layer_types,
)
from edgellm.arch.parts import embeddings, logits_head, normalize, project, rotation_of
from edgellm.arch.sharing import LastOfKind, PerLayer, attention_of_shared, own_values, sharing_hyperparameters
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import (
    Graph,
    Rotation,
    Value,
    add,
    among_zeros,
    columns,
    glu,
    linear,
    rms_norm,
    scale,
    soft_cap,
    split_columns,
)
from edgellm.graph.nodes.low_rank import multiply_columns
from edgellm.graph.nodes.streams import add_mixed, add_to_columns, keep_large, match_size

PERIOD = 5  # of so many layers, the last sees everything
LOGIT_CAP = 30.0
LEAST_SIZE = 1e-5  # of the mean square of a stream that is made as large as another
SPARSE_LAYERS, SPARSE_DEVIATIONS = 10, 1.6448536  # where a file says nothing


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    n_layers = keys.count("block_count")
    n_ff = keys.counts("feed_forward_length", n_layers)
    c = gemma3.gemma_config(
        {**metadata, f"{keys.architecture}.feed_forward_length": n_ff[0]},
        PERIOD,
        attention_scale=1.0,
        caps=True,
        logit_cap=keys.cap("final_logit_softcapping", LOGIT_CAP),
        n_shared_layers=keys.count("attention.shared_kv_layers", 0, least=0),
        n_embd_per_layer=keys.count("embedding_length_per_layer_input"),
        n_streams=keys.count("altup.num_inputs"),
        active_stream=keys.count("altup.active_idx", 0, least=0),
    )
    if c.active_stream >= c.n_streams:
        raise FormatError(f"{keys.architecture}.altup.active_idx is {c.active_stream}, of {c.n_streams} streams")
    return replace(
        c,
        layers=tuple({"n_ff": ff, "sparsity": by} for ff, by in zip(n_ff, _sparsities(keys, n_layers), strict=True)),
    )


def _sparsities(keys: Keys, n_layers: int) -> list[float | None]:
    """By how many standard deviations gates must be above the mean, layer by layer; None where all count."""
    key = f"{keys.architecture}.activation_sparsity_scale"
    usual = [SPARSE_DEVIATIONS if layer < SPARSE_LAYERS else -math.inf for layer in range(n_layers)]
    found = np.asarray(keys.metadata.get(key, usual))
    if found.dtype.kind != "f" or found.shape != (n_layers,) or np.isnan(found).any():
        raise FormatError(f"{key} is not a number for each of {n_layers} layers")
    return [float(x) if math.isfinite(x) else None for x in found]


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    everywhere = rotation_of(w, c, interleaved=False)
    nearby = gemma3.nearby_rotation(c, c.n_rot)
    x = embeddings(g, w, c)
    per_layer, last = PerLayer(g, w, c, x), LastOfKind(c)
    streams = _widened(w, c, x)
    for layer, window in enumerate(c.windows):
        rotation = everywhere if window is None else nearby
        streams = _layer(w.block(layer), c.of_layer(layer), streams, rotation, last, layer, per_layer.of(layer))
    return g.output(_narrowed(w, c, streams), "hidden")


head = logits_head


def _layer(
    w: Weights, c: ModelConfig, streams: Value, rotation: Rotation, last: LastOfKind, layer: int, own: Value
) -> Value:
    n, start = c.n_embd, c.active_stream * c.n_embd
    routed = _routed(w, c, columns(streams, start, n))
    by = linear(routed, w.take("altup_predict_coef", c.n_streams**2, c.n_streams))
    streams = add_mixed(streams, streams, by, n)
    x = columns(streams, start, n)

    h = normalize(w, c, x, "attn_norm")
    rank = w.take("laurel_l", None, n)
    short = linear(linear(h, rank), w.take("laurel_r", n, rank.shape[0]))
    short = add(h, normalize(w, c, short, "laurel_post_norm"))
    found = attention_of_shared(w, c, h, rotation, last, layer)
    found = add(x, normalize(w, c, found, "post_attention_norm"))
    found = _named(w, scale(add(found, short), 0.5**0.5), "ffn_inp")
    made = _feed_forward(w, c, normalize(w, c, found, "ffn_norm"))
    made = _named(w, add(found, normalize(w, c, made, "post_ffw_norm")), "l_out")

    by = linear(_routed(w, c, made), w.take("altup_correct_coef", c.n_streams, c.n_streams))
    streams = add_mixed(streams, add(made, scale(x, -1.0)), by, n, plus=1.0)
    x = multiply_columns(columns(streams, start, n), w.take("altup_correct_scale", n))
    inner = glu(linear(x, w.take("inp_gate", c.n_embd_per_layer, n)), own, "gelu")
    h = normalize(w, c, linear(inner, w.take("proj", n, c.n_embd_per_layer)), "post_norm")
    return add_to_columns(streams, h, n)


def _named(w: Weights, x: Value, name: str) -> Value:
    return x.graph.name(x, w.named(name))


def _routed(w: Weights, c: ModelConfig, x: Value) -> Value:
    """What decides how streams are mixed: numbers from -1 to 1, as many as there are streams."""
    h = scale(rms_norm(x, w.take("altup_router_norm", c.n_embd), c.epsilon), 1 / c.n_embd)
    return soft_cap(linear(h, w.take("altup_router", c.n_streams, c.n_embd)), 1.0)


def _feed_forward(w: Weights, c: ModelConfig, x: Value) -> Value:
    gate, up = (project(w, x, name, c.n_ff) for name in ("ffn_gate", "ffn_up"))
    if c.sparsity is not None:
        gate = keep_large(gate, c.sparsity)
    return project(w, glu(gate, up, "gelu", name=w.named("ffn_act")), "ffn_down", c.n_embd, "ffn_out")


def _widened(w: Weights, c: ModelConfig, x: Value) -> Value:
    """The streams: x, and what matrices make of it, each as large as x."""
    n, width = c.n_embd, c.n_streams * c.n_embd
    streams = among_zeros(x, 0, width)
    for index, matrix in enumerate(_matrices(w, c, "altup_proj"), 1):
        streams = add(streams, among_zeros(match_size(linear(x, matrix), x, LEAST_SIZE), index * n, width))
    return streams


def _narrowed(w: Weights, c: ModelConfig, streams: Value) -> Value:
    """The mean of the streams, after matrices have made them alike again."""
    first, *others = split_columns(streams, *(c.n_embd,) * c.n_streams)
    total = first
    for x, matrix in zip(others, _matrices(w, c, "altup_unembd_proj"), strict=True):
        total = add(total, match_size(linear(x, matrix), first, LEAST_SIZE))
    return scale(total, 1 / c.n_streams)


def _matrices(w: Weights, c: ModelConfig, name: str) -> list[Tensor]:
    """Those that are stacked in one tensor [n_streams - 1, n_embd, n_embd], for all streams but the first."""
    n = c.n_embd
    stack = w.take(name, c.n_streams - 1, n, n)
    return [Tensor(stack.name, (n, n), stack.format, stack.raw[i * n : (i + 1) * n]) for i in range(c.n_streams - 1)]


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_activation", "gelu_pytorch_tanh")
    s.expect("altup_correct_scale", True)
    full, sliding = gemma3.ropes(s)
    n_layers = s.count("num_hidden_layers")
    n_ff, sparsity = (
        value if isinstance(value := s.get(name, default), list) else [value] * n_layers
        for name, default in (("intermediate_size", None), ("activation_sparsity_pattern", 0.0))
    )
    if len(sparsity) != n_layers or not all(isinstance(x, (int, float)) and 0 <= x < 1 for x in sparsity):
        raise FormatError(f"{s.file}: activation_sparsity_pattern is not a share for each of {n_layers} layers")
    if len(n_ff) != n_layers or not all(isinstance(x, int) and x > 0 for x in n_ff):
        raise FormatError(f"{s.file}: intermediate_size is not a size for each of {n_layers} layers")
    s.values["intermediate_size"] = n_ff[0]
    shape = decoder_hyperparameters(s, full)
    slides = layer_types(s, n_layers) or all_but_every(PERIOD, n_layers)
    return shape | sharing_hyperparameters(s, slides, sliding) | {
        "feed_forward_length": n_ff[0] if len(set(n_ff)) == 1 else n_ff,
        "activation_sparsity_scale": [_deviations(x) for x in sparsity],
        "embedding_length_per_layer_input": s.count("hidden_size_per_layer_input"),
        "altup.num_inputs": s.count("altup_num_inputs"),
        "altup.active_idx": s.count("altup_active_idx", 0, least=0),
    }  # fmt: skip


def _deviations(share: float) -> float:
    """By how many standard deviations a normal number is above the mean that is above this share of them."""
    from statistics import NormalDist  # which takes long to import

    return NormalDist().inv_cdf(share) if share else -math.inf


def _in_layers(**names: str) -> dict[str, str]:
    return {f"blk.{{}}.{ours}": f"model.layers.{{}}.{theirs}" for ours, theirs in names.items()}


HUGGING_FACE = HuggingFace(
    classes=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    model_type="gemma3n_text",
    hyperparameters=_hyperparameters,
    tensors=DECODER
    | HEAD_NORMS
    | POST_NORMS
    | PER_LAYER
    | {"altup_proj": "model.altup_projections.*", "altup_unembd_proj": "model.altup_unembed_projections.*"}
    | _in_layers(
        inp_gate="per_layer_input_gate",
        proj="per_layer_projection",
        post_norm="post_per_layer_input_norm",
        altup_correct_coef="altup.correction_coefs",
        altup_correct_scale="altup.correct_output_scale",
        altup_predict_coef="altup.prediction_coefs",
        altup_router="altup.modality_router",
        altup_router_norm="altup.router_norm",
        laurel_l="laurel.linear_left",
        laurel_r="laurel.linear_right",
        laurel_post_norm="laurel.post_laurel_norm",
    ),
    stacked=("altup_proj", "altup_unembd_proj"),
    bare=("altup_correct_scale",),
    biases=ATTENTION_BIASES,
    promises={"attn_v": own_values()},
    defaults=DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768, "sliding_window": 512,
        "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15, "altup_num_inputs": 4,
        "final_logit_softcapping": LOGIT_CAP, "tie_word_embeddings": True,
    },
    null_stays=("final_logit_softcapping",),
    rope=lambda s: gemma3.ropes(s)[0],
)  # fmt: skip
