"""ModernBERT (Warner et al., 2024): norms before each half of a layer, rotary positions, gated GELU.

Every third layer sees all of a text, from the first on; the others see a window around each token, with a shorter
rotary base. Norms have no bias, and the first layer has no norm before its attention, for the embeddings have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.arch.config import Keys
from edgellm.arch.encoder_checkpoint import EncoderCheckpoint, encoder_hyperparameters
from edgellm.arch.encoder_parts import (
    EncoderConfig,
    attend,
    embed_text,
    embedding_head,
    encoder_config,
    feed,
    rotation_by,
)
from edgellm.arch.huggingface import Settings, layer_types
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.arch.parts import normalize
from edgellm.arch.promises import Promise
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.graph.nodes import Graph, Value, add

GLOBAL_PERIOD = 3  # of so many layers, the first sees everything
ROPE_BASE, LOCAL_ROPE_BASE = 160_000.0, 10_000.0


def configure(metadata: Mapping[str, Any]) -> EncoderConfig:
    keys = Keys(metadata)
    return encoder_config(
        metadata,
        windows=_windows(keys, keys.count("block_count")),
        rope_base=keys.number("rope.freq_base", ROPE_BASE),
        rope_base_local=keys.number("rope.freq_base_swa", LOCAL_ROPE_BASE),
    )


def _windows(keys: Keys, n_layers: int) -> tuple[int | None, ...]:
    """The file's window is the whole one, half to each side of a token; a pattern of n is that of GLOBAL_PERIOD."""
    window = keys.count("attention.sliding_window", 0, least=0)
    key = f"{keys.architecture}.attention.sliding_window_pattern"
    pattern = keys.metadata.get(key, GLOBAL_PERIOD)
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        slides = [layer % pattern != 0 for layer in range(n_layers)]
    elif (flags := np.asarray(pattern)).dtype == np.bool_ and flags.shape == (n_layers,):
        slides = flags.tolist()
    else:
        raise FormatError(f"{key} is {pattern!r:.60}; expected a number, or a bool for each of {n_layers} layers")
    return tuple(window // 2 + 1 if slide and window else None for slide in slides)


def body(g: Graph, w: Weights, c: EncoderConfig) -> Value:
    everywhere, nearby = rotation_by(c, c.rope_base), rotation_by(c, c.rope_base_local or LOCAL_ROPE_BASE)
    x = embed_text(g, w, c)
    for layer, window in enumerate(c.windows):
        block = w.block(layer)
        h = normalize(block, c, x, "attn_norm") if block.has("attn_norm") else x
        h = attend(block, c, h, everywhere if window is None else nearby, window)
        x = add(x, h, name=block.named("ffn_inp"))
        h = feed(block, c, normalize(block, c, x, "ffn_norm"))
        x = add(x, h, name=block.named("l_out"))
    return g.output(normalize(w, c, x, "output_norm"))


head = embedding_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    shape = encoder_hyperparameters(s, activation="hidden_activation", epsilon="norm_eps")
    n_layers = shape["block_count"]
    period = s.count("global_attn_every_n_layers")
    slides = layer_types(s, n_layers) or [layer % period != 0 for layer in range(n_layers)]
    shape["attention.sliding_window"] = s.count("local_attention")
    if slides != [layer % GLOBAL_PERIOD != 0 for layer in range(n_layers)]:
        shape["attention.sliding_window_pattern"] = slides
    everywhere, nearby = _ropes(s)
    return shape | {
        "rope.freq_base": everywhere.number("rope_theta"),
        "rope.freq_base_swa": nearby.number("rope_theta"),
    }


def _of_classifier(s: Settings) -> dict[str, Any]:
    s.expect("classifier_activation", "gelu")
    return _hyperparameters(s)


# The first layer's embeddings are normalized already.
_PROMISES = {"attn_norm": Promise(lambda s, layer: layer > 0)}


def _ropes(s: Settings) -> tuple[Settings, Settings]:
    """The rotary embeddings of layers that see everything and of those with a window."""
    sections = s.section("rope_parameters")

    def of(kind: str, theta: float) -> Settings:
        rope = {"rope_theta": theta, "rope_parameters": dict(sections.section(kind).values)}
        return rope_settings(Settings(rope), known=("default",))

    everywhere, nearby = s.number("global_rope_theta"), s.number("local_rope_theta")
    return of("full_attention", everywhere), of("sliding_attention", nearby)


_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 12,
    "hidden_activation": "gelu", "max_position_embeddings": 8192, "norm_eps": 1e-5, "local_attention": 128,
    "global_attn_every_n_layers": GLOBAL_PERIOD, "global_rope_theta": ROPE_BASE, "local_rope_theta": LOCAL_ROPE_BASE,
    "attention_bias": False, "mlp_bias": False, "norm_bias": False, "classifier_bias": False,
    "classifier_pooling": "cls",
}  # fmt: skip
_TENSORS = {
    "token_embd": "embeddings.tok_embeddings",
    "token_embd_norm": "embeddings.norm",
    "output_norm": "final_norm",
    "blk.{}.attn_norm": "layers.{}.attn_norm",
    "blk.{}.attn_qkv": "layers.{}.attn.Wqkv",
    "blk.{}.attn_output": "layers.{}.attn.Wo",
    "blk.{}.ffn_norm": "layers.{}.mlp_norm",
    "blk.{}.ffn_up": "layers.{}.mlp.Wi",
    "blk.{}.ffn_down": "layers.{}.mlp.Wo",
}
_BIASES = (
    dict.fromkeys(("attn_qkv", "attn_output"), "attention_bias")
    | dict.fromkeys(("ffn_up", "ffn_down"), "mlp_bias")
    | dict.fromkeys(("token_embd_norm", "output_norm", "ffn_norm"), "norm_bias")
)

HUGGING_FACE = EncoderCheckpoint(
    classes=("ModernBertModel", "ModernBertForMaskedLM"),
    model_type="modernbert",
    hyperparameters=_hyperparameters,
    tensors=_TENSORS,
    biases=_BIASES,
    promises=_PROMISES,
    defaults=_DEFAULTS,
    rope=lambda s: _ropes(s)[0],
    prefix="model.",
    left_out=r"(head|decoder)\.",
)
CROSS_ENCODER = EncoderCheckpoint(
    classes=("ModernBertForSequenceClassification",),
    model_type="modernbert",
    hyperparameters=_of_classifier,
    tensors=_TENSORS | {"cls": "head.dense", "cls.norm": "head.norm", "cls.output": "classifier"},
    biases=_BIASES | {"cls": "classifier_bias", "cls.norm": "norm_bias", "cls.output": None},
    promises=_PROMISES,
    defaults=_DEFAULTS,
    rope=lambda s: _ropes(s)[0],
    prefix="model.",
    ranks="classifier_pooling",
)
