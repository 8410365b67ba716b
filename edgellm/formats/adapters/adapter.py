"""An adapter: small weights that change what a frozen model computes.

LoRA (Hu et al., 2021) adds two thin matrices to a weight W [n_out, n_in]: W x becomes W x + scale * B (A x). In DoRA
(Liu et al., 2024) the rows of W + scale * B A are brought to lengths that were learnt, the magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import FormatError, UsageError
from edgellm.formats.adapters.parts import MOST_VIRTUAL, Bottleneck, LayerPrefix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.formats.tensor import Tensor

SCORE = "score.weight"  # the head of a reward model
MOST_RANK = 4096  # more than this is no thin matrix


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to one weight W [n_out, n_in].

    a:          float32 [rank, n_in]. b: float32 [n_out, rank].
    scale:      of their product: alpha / rank, or alpha / sqrt(rank) with rank stabilization (Kalajdzievski, 2023).
    magnitude:  float32 [n_out], how long the rows of W + scale * b a shall be (DoRA); None where they stay as they are.

    Rows are in GGUF's order. For the embeddings W [n_vocab, n_embd] it is the same. Experts are a stack of matrices,
    W [n_experts, n_out, n_in], and each has its own: a [n_experts, rank, n_in] and b [n_experts, n_out, rank], without
    magnitude.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    magnitude: NDArray[np.float32] | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return *self.b.shape[:-1], self.a.shape[-1]

    @property
    def is_of_experts(self) -> bool:
        return self.a.ndim == 3

    def added(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """scale * b a for some rows, counted through all experts: float32 [n, n_in]."""
        if not self.is_of_experts:
            return np.float32(self.scale) * (self.b[rows] @ self.a)
        n_experts, n_out, _ = self.b.shape
        start, stop, _ = rows.indices(n_experts * n_out)
        found = np.empty((stop - start, self.a.shape[-1]), np.float32)
        for expert in range(start // n_out, -(-stop // n_out)):
            first, last = max(start, expert * n_out), min(stop, (expert + 1) * n_out)
            own = self.b[expert, first - expert * n_out : last - expert * n_out]
            found[first - start : last - start] = np.float32(self.scale) * (own @ self.a[expert])
        return found

    def check(self, name: str) -> None:
        """Raise FormatError for shapes that do not belong together, or what is no finite number."""
        a, b, magnitude = self.a, self.b, self.magnitude
        if a.ndim not in (2, 3) or a.shape[:-2] != b.shape[:-2] or a.ndim != b.ndim or a.shape[-2] != b.shape[-1]:
            raise FormatError(
                f"{name}: its two matrices have the shapes {list(a.shape)} and {list(b.shape)}; expected [rank, n_in] "
                "and [n_out, rank], or of experts [n_experts, rank, n_in] and [n_experts, n_out, rank]"
            )
        if not 1 <= self.rank <= MOST_RANK or not a.size or not b.size:
            raise FormatError(f"{name}: its rank is {self.rank}; expected 1 to {MOST_RANK}")
        if magnitude is not None and self.is_of_experts:
            raise FormatError(f"{name}: experts with a magnitude (DoRA); edgellm knows them for linears")
        if magnitude is not None and magnitude.shape != (len(b),):
            raise FormatError(f"{name}: its magnitude has the shape {list(magnitude.shape)}; expected [{len(b)}]")
        if not abs(self.scale) <= np.finfo(np.float32).max:
            raise FormatError(f"{name}: its scale is {self.scale}; expected a finite number")
        for x in (a, b) if magnitude is None else (a, b, magnitude):
            if not np.isfinite(x).all():
                raise FormatError(f"{name}: the adapter holds NaN or infinity; its training failed, or it is damaged")


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory, whatever file it comes from or goes to.

    architecture:  of the model that it was made for, as `general.architecture` calls it; empty where nobody knows.
    weights:       what it adds, by GGUF's name of the weight: "blk.3.attn_q.weight". That of the matrix that makes
                   logits is "output.weight", also in a model whose embeddings serve as that.
    replaced:      float32, whole tensors in place of the model's (modules_to_save, biases), by GGUF's names.
    name:          its own. base_name: that of the model that it was made for.
    rank_stabilized: its scales are alpha / sqrt(rank) rather than alpha / rank.
    dropout:       of its training, which nothing here needs.
    notes:         what a person should know: settings that were passed over.
    prompt:        float32 [n_virtual, n_embd], embeddings that stand before every text (prompt tuning; Lester et al.,
                   2021); None where there are none.
    encoder_width: of the network that made the prompt in training (P-tuning; Liu et al., 2021); 0 where none did.
    prefix:        keys and values that stand before every text, layer by layer; empty where there are none.
    bottlenecks:   what halves of layers go through, by the names of what they make: "blk.3.ffn_out".
    score:         float32 [1, n_embd], of a reward model: the last hidden state of a text, after the last norm, times
                   this says how good it is. Such an adapter writes no texts.
    """

    architecture: str
    weights: Mapping[str, LowRank]
    replaced: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    name: str = ""
    base_name: str = ""
    rank_stabilized: bool = False
    dropout: float = 0.0
    notes: tuple[str, ...] = ()
    prompt: NDArray[np.float32] | None = None
    encoder_width: int = 0
    prefix: tuple[LayerPrefix, ...] = ()
    bottlenecks: Mapping[str, Bottleneck] = field(default_factory=dict)
    score: NDArray[np.float32] | None = None

    @property
    def shares_embedding(self) -> bool:
        """Whether it has one matrix in place of both embeddings and logits, as a model may."""
        embedding = self.replaced.get("token_embd.weight")
        return embedding is not None and self.replaced.get("output.weight") is embedding

    @property
    def method(self) -> str:
        """ "lora", "dora", "prompt", "p-tuning", "prefix" or "adapter" """
        if self.prompt is not None:
            return "p-tuning" if self.encoder_width else "prompt"
        if self.prefix:
            return "prefix"
        if self.bottlenecks:
            return "adapter"
        return "dora" if any(change.magnitude is not None for change in self.weights.values()) else "lora"

    @cached_property
    def n_bytes(self) -> int:
        parts = [x for change in self.weights.values() for x in (change.a, change.b, change.magnitude)]
        return sum(x.nbytes for x in (*parts, *self.replaced.values(), *self._others) if x is not None)

    @property
    def n_virtual(self) -> int:
        """With how many tokens of its own a text begins."""
        return len(self.prompt) if self.prompt is not None else len(self.prefix[0].keys) if self.prefix else 0

    @property
    def _others(self) -> Iterator[NDArray[np.float32]]:
        """The arrays of what is no change of a weight."""
        if self.prompt is not None:
            yield self.prompt
        for layer in self.prefix:
            yield from (layer.keys, layer.values)
        for bottleneck in self.bottlenecks.values():
            yield from bottleneck.arrays

    def check(self) -> None:
        """Raise FormatError for shapes that do not belong together, and numbers that are none."""
        kinds = [self.weights or self.replaced, self.prompt is not None, self.prefix, self.bottlenecks]
        if sum(map(bool, kinds)) != 1:
            several = "several kinds of small weights; expected one" if any(kinds) else "no tensors"
            raise FormatError(f"the adapter holds {several}")
        for name, bottleneck in self.bottlenecks.items():
            bottleneck.check(name)
        tables = [self.prompt] if self.prompt is not None else [x for x in self._others if self.prefix]
        for table in tables:
            if table.ndim != 2 or len(table) != self.n_virtual or not 1 <= len(table) <= MOST_VIRTUAL:
                raise FormatError(
                    f"the adapter's own tokens have the shape {list(table.shape)}; expected [n, width], with the same "
                    f"n from 1 to {MOST_VIRTUAL} everywhere"
                )
        if not all(np.isfinite(x).all() for x in self._others):
            raise FormatError("the adapter holds NaN or infinity; its training failed, or it is damaged")
        for name, change in self.weights.items():
            change.check(name)
            if name == "token_embd.weight" and change.magnitude is not None:
                raise FormatError(f"{name}: embeddings with a magnitude (DoRA); edgellm knows them for linears")
        whole = dict(self.replaced) if self.score is None else {**self.replaced, SCORE: self.score}
        for name, x in whole.items():
            if not np.isfinite(x).all():
                raise FormatError(f"{name}: the adapter holds NaN or infinity; its training failed, or it is damaged")
        if self.score is not None and (self.score.ndim != 2 or len(self.score) != 1):
            raise FormatError(f"{SCORE} has the shape {list(self.score.shape)}; expected [1, n_embd], for one reward")
        if self.score is not None and self.method not in ("lora", "dora"):
            raise FormatError(f"a reward model of the kind {self.method!r}; edgellm knows those of lora and dora")

    def refuse_score(self, use: str) -> None:
        """Raise UsageError for a reward model, where texts are to be written."""
        if self.score is not None:
            raise UsageError(
                f"{self.name or 'the adapter'} is a reward model: it says how good a text is, and cannot be {use}; "
                "`edgellm train grpo` and `edgellm.RewardModel` take it"
            )

    def check_fits(self, architecture: str, tensors: Mapping[str, Tensor]) -> None:
        """Raise FormatError unless the model has every weight that is changed, in the same shape."""
        if self.architecture and self.architecture != architecture:
            raise FormatError(
                f"the adapter was made for a model of the architecture {self.architecture!r:.60}, and this model is "
                f"{architecture!r}; use it with {self._base()}"
            )
        shapes = {name: change.shape for name, change in self.weights.items()}
        shapes |= {name: x.shape for name, x in self.replaced.items()}
        width = tensors["token_embd.weight"].shape[-1] if "token_embd.weight" in tensors else 0
        if self.score is not None and width and self.score.shape[1] != width:
            raise FormatError(
                f"the reward model reads hidden states of {self.score.shape[1]} numbers, and this model has {width}; "
                f"use it with {self._base()}"
            )
        for name, shape in shapes.items():
            own = "token_embd.weight" if name == "output.weight" and name not in tensors else name
            if own not in tensors:
                raise FormatError(
                    f"the adapter changes {name!r:.120}, which this model does not have; use it with {self._base()}"
                )
            if tensors[own].shape != shape:
                raise FormatError(
                    f"the adapter changes {name!r} of the shape {list(shape)}, and this model has it in "
                    f"{list(tensors[own].shape)}; use it with {self._base()}"
                )
        for what, found, expected in self._sizes(tensors):
            if found != expected:
                raise FormatError(
                    f"the adapter has {what} {found}, and this model {expected}; use it with {self._base()}"
                )

    def _sizes(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int, int]]:
        """What must be the same here and in the model."""
        width = tensors["token_embd.weight"].shape[1]
        if self.prompt is not None:
            yield "embeddings of width", self.prompt.shape[1], width
        if self.prefix:
            names = (f"blk.{layer}.attn_k.weight" for layer in range(len(tensors)))
            keys = [tensors[name] for name in names if name in tensors]
            yield "layers of keys and values:", len(self.prefix), len(keys)
            for layer, weight in zip(self.prefix, keys, strict=True):
                for table in (layer.keys, layer.values):
                    yield "keys or values of width", table.shape[1], weight.shape[0]
        for name, bottleneck in self.bottlenecks.items():
            if f"{name.replace('_out', '_norm')}.weight" not in tensors:
                raise FormatError(
                    f"the adapter changes {name!r:.120}, which this model does not have; use it with {self._base()}"
                )
            yield "bottlenecks of width", bottleneck.down.shape[1], width

    def _base(self) -> str:
        return f"the model that it was made for{f' ({self.base_name:.80})' if self.base_name else ''}"
