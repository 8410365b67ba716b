"""The families that edgellm runs, by the name that `general.architecture` gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import HuggingFace
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.formats.gguf import get_value
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import Graph, KeysValues, Node, Value


class ModelGraphs(NamedTuple):
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


class Architecture(NamedTuple):
    """A family: how to read its hyperparameters, its two programs, and what its checkpoints look like.

    body:          token ids to hidden states. head: hidden states of the wanted tokens to logits.
    is_encoder:    it makes vectors or scores of whole texts, and no text: its head takes a pooled row of each, and
                   gives `logits` the width of a vector, or as many scores as there are classes.
    """

    configure: Callable[[Mapping[str, Any]], ModelConfig]
    body: Callable[[Graph, Weights, ModelConfig], Value]
    head: Callable[[Graph, Weights, ModelConfig, Value], Value]
    places: tuple[str, ...]  # of its kinds of checkpoints
    is_encoder: bool = False

    @property
    def hugging_face(self) -> tuple[HuggingFace, ...]:
        """The kinds of checkpoint that become this architecture; files that hold others are imported now."""
        return tuple(getattr(kind, "HUGGING_FACE", kind) for kind in map(_content, self.places))

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

    def record_vectors(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelGraphs:
        """The model as one that makes vectors, or scores, of whole texts without a cache; raises as `check` does.

        hidden is what is pooled: of a decoder, what its last norm makes. What makes logits there has no place.
        """
        if self.is_encoder:
            return self.record(config, tensors)
        from edgellm.arch.encoder_parts import embedding_head  # which models for chat seldom need
        from edgellm.arch.parts import normalize

        weights, decoder, head = Weights(tensors), Graph(), Graph()
        hidden = self.body(decoder, weights, config)
        body, became = _without_cache(decoder)
        states = body.output(normalize(weights, config, became[hidden], config.style.output_norm))
        pooled = head.input(states.width)
        made = embedding_head(head, weights, config, pooled)
        weights.used.add("output.weight")
        weights.refuse_the_rest(config.architecture)
        return ModelGraphs(body, head, states, pooled, made)


def _without_cache(graph: Graph) -> tuple[Graph, dict[Value, Value]]:
    """The same graph for whole texts, whose tokens attend to keys and values of the batch; what each value became."""

    def record(result: Graph, node: Node, inputs: dict[str, Value]) -> Iterable[Value]:
        changes: dict[str, Any] = {**inputs}
        if node.n_state:
            raise UnsupportedError("vectors of texts from a model with recurrent layers are not built yet")
        if isinstance(node, KeysValues):
            changes["cached"] = False
        return result.record_all(replace(node, **changes))

    return graph.rewritten(record)


# The file of each family, and files or names in them (FILE:NAME) of further kinds of its checkpoints.
_FILES: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "mistral", "mixtral"),
    "mistral3": ("mistral3",),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
    "gemma": ("gemma",),
    "gemma2": ("gemma2",),
    "gemma3": ("gemma3",),
    "gemma3n": ("gemma3n",),
    "gemma4": ("gemma4",),
    "phi3": ("phi3",),
    "smollm3": ("smollm3",),
    "granite": ("granite",),
    "olmo2": ("olmo2", "olmo2:VERSION_3"),
    "starcoder2": ("starcoder2",),
    "stablelm": ("stablelm",),
    "command-r": ("command_r",),
    "cohere2": ("cohere2",),
    "exaone4": ("exaone4",),
    "ernie4_5": ("ernie4_5",),
    "hunyuan-dense": ("hunyuan_dense",),
    "bitnet": ("bitnet",),
    "bitnet-b1.58": ("bitnet",),
    "gpt2": ("gpt2",),
    "gptneox": ("gptneox",),
    "falcon": ("falcon",),
    "bloom": ("bloom",),
    "mpt": ("mpt",),
    "qwen2moe": ("qwen2moe",),
    "qwen3moe": ("qwen3moe",),
    "olmoe": ("olmoe",),
    "granitemoe": ("granitemoe",),
    "ernie4_5-moe": ("ernie4_5_moe",),
    "gpt-oss": ("gpt_oss",),
    "deepseek2": ("deepseek2", "deepseek2:VERSION_3", "deepseek2:GLM_LITE"),
    "bailingmoe2": ("bailingmoe2",),
    "lfm2": ("lfm2",),
    "lfm2moe": ("lfm2moe",),
    "qwen3next": ("qwen3next",),
    "qwen35": ("qwen35",),
    "qwen35moe": ("qwen35moe",),
}
# The same of those that make vectors or scores of whole texts, and no text.
_ENCODERS: dict[str, tuple[str, ...]] = {
    "bert": ("bert", "bert:CROSS_ENCODER", "bert:ROBERTA", "bert:ROBERTA_CROSS_ENCODER"),
    "nomic-bert": ("nomic_bert", "nomic_bert:FIRST_FORM"),
    "jina-bert-v2": ("jina_bert", "jina_bert:CROSS_ENCODER"),
    "modern-bert": ("modern_bert", "modern_bert:CROSS_ENCODER"),
    "gemma-embedding": ("gemma_embedding",),
}


class _Families(Mapping[str, Architecture]):
    """The families by their names; the file of one is imported when somebody asks for it."""

    def __init__(self) -> None:
        self._known: dict[str, Architecture] = {}

    def __getitem__(self, name: str) -> Architecture:
        if name not in self._known:
            places = (_FILES | _ENCODERS)[name]
            module = _content(places[0])
            self._known[name] = Architecture(module.configure, module.body, module.head, places, name in _ENCODERS)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_FILES | _ENCODERS)

    def __len__(self) -> int:
        return len(_FILES) + len(_ENCODERS)


def _content(place: str) -> Any:
    """A file of this folder, or what has a name in it."""
    module, _, name = place.partition(":")
    found = import_module(f"edgellm.arch.{module}")
    return getattr(found, name) if name else found


ARCHITECTURES: Mapping[str, Architecture] = _Families()


def some_of(name: str, known: Iterable[str], most: int = 8) -> str:
    """Names for an error: those that are most like the one that was asked for, and the first ones, of many."""
    from difflib import get_close_matches  # which nobody needs otherwise

    known = list(dict.fromkeys(known))
    chosen = list(dict.fromkeys([*get_close_matches(name[:60], known), *known]))[:most]
    rest = len(known) - len(chosen)
    return ", ".join(chosen) + (f" and {rest} more (docs/families.md)" if rest else "")


# What a file that is no model calls itself, and what to do with it.
_NO_MODELS = {
    "adapter": "an adapter; run the model that it was made for, with --lora",
    "imatrix": "an importance matrix; it goes with `edgellm quantize MODEL --imatrix`",
    "mmproj": "a projector of images or sounds; run the model that it lies beside, of which edgellm runs the text part",
}


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """The family of a file. Raises UnsupportedError naming one that edgellm does not run, and for what is no model."""
    if (kind := get_value(metadata, "general.type", str, "model")) in _NO_MODELS:
        raise UnsupportedError(f"the file is {_NO_MODELS[kind]}")
    name = get_value(metadata, "general.architecture", str)
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"the model's architecture is {name!r:.60}; edgellm runs {some_of(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]
