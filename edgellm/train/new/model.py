"""A new model in memory: its metadata, and its weights as arrays that are trained in place.

The first weights are drawn as GPT-2's (Radford et al., 2019): normally distributed with deviation 0.02. Those that make
what a layer adds to the stream of hidden states are divided by sqrt(2 n_layers), for there are 2 n_layers additions.
Norms are 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch import ARCHITECTURES
from edgellm.engine.opening import check_vocabulary
from edgellm.errors import FileProblem
from edgellm.files import check_room
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS
from edgellm.text import ChatTemplate, load_tokenizer
from edgellm.train.new.shape import Shape
from edgellm.train.new.vocabulary import NewVocabulary

DEVIATION = 0.02
ALL_F32 = 0  # `general.file_type`
_ADDED = ("attn_output.weight", "ffn_down.weight", "ffn_down_exps.weight")


@dataclass(frozen=True, eq=False)
class NewModel:
    """What a GGUF file of it will hold.

    metadata:  as in the file.
    weights:   float32, C-contiguous, by the names of the file. Whoever trains changes them in place.
    """

    metadata: dict[str, Any]
    weights: dict[str, NDArray[np.float32]]

    @property
    def n_parameters(self) -> int:
        return sum(x.size for x in self.weights.values())

    def tensors(self) -> dict[str, Tensor]:
        """The weights as tensors, which share their memory: what a graph computes with sees every change."""
        return {name: _tensor(name, x) for name, x in self.weights.items()}

    def write(self, target: Path) -> None:
        """Write the file, which takes its name only when it is whole and opens again as a model that runs.

        Raises FileProblem when it cannot be written.
        """
        tensors = [(name, x.shape, FORMATS["F32"], x) for name, x in self.weights.items()]
        try:
            check_room(target, sum(x.nbytes for x in self.weights.values()))
            GGUFWriter(target, self.metadata, tensors).write(_check_file)
        except OSError as problem:
            raise FileProblem(f"{target} cannot be written: {problem.strerror or problem}") from None


def new_model(name: str, shape: Shape, vocabulary: NewVocabulary, seed: int) -> NewModel:
    """A model with its first weights.

    Raises FormatError or TemplateError when it could not be run, as with a chat template that is malformed.
    """
    metadata = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.file_type": ALL_F32,
        **{f"llama.{key}": value for key, value in shape.hyperparameters(vocabulary.n_vocab).items()},
        **vocabulary.metadata,
    }
    model = NewModel(metadata, first_weights(shape, vocabulary.n_vocab, seed))
    _check(metadata, model.tensors())
    return model


def first_weights(shape: Shape, n_vocab: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """The weights before any training. Each tensor has random numbers of its own, so others do not change them."""
    return {name: _first(name, size, shape.n_layers, seed) for name, size in shape.tensors(n_vocab).items()}


def _first(name: str, size: tuple[int, ...], n_layers: int, seed: int) -> NDArray[np.float32]:
    if len(size) == 1:
        return np.ones(size, np.float32)
    deviation = DEVIATION / math.sqrt(2 * n_layers) if name.endswith(_ADDED) else DEVIATION
    numbers = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return numbers.standard_normal(size, np.float32) * np.float32(deviation)


def _tensor(name: str, x: NDArray[np.float32]) -> Tensor:
    raw = x.view(np.uint8)
    return Tensor(name, x.shape, FORMATS["F32"], raw)


def _check_file(file: GGUFFile) -> None:
    _check(file.metadata, file.tensors)


def _check(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    llama = ARCHITECTURES["llama"]
    llama.check(llama.configure(metadata), tensors)
    tokenizer = load_tokenizer(metadata)
    check_vocabulary(tensors, tokenizer)
    tokenizer.encode("a", add_special=True, parse_special=True)
    template = ChatTemplate.from_metadata(metadata, tokenizer)
    if template is not None:
        template.render([{"role": "user", "content": "a"}])
