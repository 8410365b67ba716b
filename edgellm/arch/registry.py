"""The families that edgellm runs, by the name that `general.architecture` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.arch import (
    bitnet,
    bloom,
    cohere2,
    command_r,
    ernie4_5,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma4,
    gpt2,
    gptneox,
    granite,
    hunyuan_dense,
    llama,
    mistral,
    mistral3,
    mpt,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
    starcoder2,
)
from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import HuggingFace
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.formats.gguf import get_value
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import Graph, Value


@dataclass(frozen=True)
class ModelGraphs:
    """A model as nodes, in two parts, for most tokens of a prompt need no logits.

    body:  token ids to `hidden`, float32 [n_tokens, n_embd].
    head:  `hidden_input`, the same rows, to `logits` of the selected ones, float32 [n_selected, n_vocab].
    """

    body: Graph
    head: Graph
    hidden: Value
    hidden_input: Value
    logits: Value

    @property
    def values(self) -> dict[str, Value]:
        """All that has a name, in the order in which it is computed."""
        return self.body.values | self.head.values


@dataclass(frozen=True)
class Architecture:
    """A family: how to read its hyperparameters, its two programs, and what its checkpoints look like.

    body:          token ids to hidden states. head: hidden states of the wanted tokens to logits.
    hugging_face:  the kinds of checkpoint that become this architecture.
    """

    configure: Callable[[Mapping[str, Any]], ModelConfig]
    body: Callable[[Graph, Weights, ModelConfig], Value]
    head: Callable[[Graph, Weights, ModelConfig, Value], Value]
    hugging_face: tuple[HuggingFace, ...]

    def check(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        """Go through the forward pass without computing it.

        Raises FormatError for a tensor that is missing or misshapen, UnsupportedError for one that has no place.
        """
        self.record(config, tensors)

    def record(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelGraphs:
        """The forward pass of a model, as nodes. Raises as `check` does."""
        weights, body, head = Weights(tensors), Graph(), Graph()
        hidden = self.body(body, weights, config)
        hidden_input = head.input(hidden.width)
        logits = self.head(head, weights, config, hidden_input)
        weights.refuse_the_rest(config.architecture)
        return ModelGraphs(body, head, hidden, hidden_input, logits)


def _family(module: Any, *more: HuggingFace) -> Architecture:
    return Architecture(module.configure, module.body, module.head, (module.HUGGING_FACE, *more))


ARCHITECTURES = {
    "llama": _family(llama, mistral.HUGGING_FACE),
    "qwen2": _family(qwen2),
    "qwen3": _family(qwen3),
    "gemma": _family(gemma),
    "gemma2": _family(gemma2),
    "gemma3": _family(gemma3),
    "gemma4": _family(gemma4),
    "phi3": _family(phi3),
    "mistral3": _family(mistral3),
    "smollm3": _family(smollm3),
    "granite": _family(granite),
    "olmo2": _family(olmo2),
    "starcoder2": _family(starcoder2),
    "stablelm": _family(stablelm),
    "command-r": _family(command_r),
    "cohere2": _family(cohere2),
    "exaone4": _family(exaone4),
    "ernie4_5": _family(ernie4_5),
    "hunyuan-dense": _family(hunyuan_dense),
    "bitnet": _family(bitnet),
    "bitnet-b1.58": _family(bitnet),
    "gpt2": _family(gpt2),
    "gptneox": _family(gptneox),
    "falcon": _family(falcon),
    "bloom": _family(bloom),
    "mpt": _family(mpt),
}


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """The family of a file. Raises UnsupportedError naming one that edgellm does not run."""
    name = get_value(metadata, "general.architecture", str)
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"the model's architecture is {name!r:.60}; edgellm runs: {known}")
    return ARCHITECTURES[name]
