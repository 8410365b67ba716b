"""EmbeddingGemma (Google, 2025): a Gemma 3 that sees all of a text, with dense layers after pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgellm.arch import gemma3
from edgellm.arch.encoder_checkpoint import EncoderCheckpoint
from edgellm.arch.encoder_parts import EncoderConfig, as_encoder, embedding_head
from edgellm.arch.huggingface import Settings
from edgellm.arch.parts import normalize
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any]) -> EncoderConfig:
    """The file's window is the whole one, half to each side of a token."""
    c = gemma3.configure(metadata, gemma3.STYLE._replace(causal=False))
    windows = tuple(window and window // 2 + 1 for window in c.windows)
    return as_encoder(replace(c, windows=windows), metadata)


def body(g: Graph, w: Weights, c: EncoderConfig) -> Value:
    return g.output(normalize(w, c, gemma3.body(g, w, c), "output_norm"))


head = embedding_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    """The window of the config is the whole one; transformers halves it as it reads the file."""
    if not s.flag("use_bidirectional_attention"):
        raise UnsupportedError(
            "config.json: a Gemma3TextModel without use_bidirectional_attention, which makes neither text nor vectors; "
            "edgellm converts Gemma3ForCausalLM, and EmbeddingGemma"
        )
    s.expect("is_causal", True)  # with false, transformers sees a wider window
    as_decoder = {key: value for key, value in s.values.items() if key != "use_bidirectional_attention"}
    shape = gemma3.hyperparameters(Settings(as_decoder, null_stays=gemma3.HUGGING_FACE.null_stays))
    return shape | {"attention.causal": False}


_GEMMA = gemma3.HUGGING_FACE
HUGGING_FACE = EncoderCheckpoint(
    classes=("Gemma3TextModel",),
    model_type="gemma3_text",
    hyperparameters=_hyperparameters,
    tensors={ours: name.removeprefix("model.") for ours, name in _GEMMA.tensors.items() if ours != "output"},
    offsets=_GEMMA.offsets,
    biases=_GEMMA.biases,
    defaults=_GEMMA.defaults,
    null_stays=_GEMMA.null_stays,
    rope=_GEMMA.rope,
    prefix="model.",
)
