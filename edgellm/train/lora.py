"""LoRA (Hu et al., 2021): low-rank weights beside frozen linear layers, of whatever format the file has (QLoRA), and
beside the matrices of experts, for each its own.

DoRA (Liu et al., 2024) learns the lengths of the rows beside: y = m / |W + s B A| * (W x + s B A x), by rows. As in the
paper, the length below is taken for a constant on the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from edgellm.engine.gradients import Look
from edgellm.errors import UsageError
from edgellm.formats.adapters import Adapter
from edgellm.formats.adapters import LowRank as Matrices
from edgellm.graph.adapters import Change, ExpertLowRank, LowRank
from edgellm.graph.nodes import Linear, Node
from edgellm.graph.nodes.dropout import Chance
from edgellm.graph.nodes.experts import ExpertLinear
from edgellm.train.adapter_learner import AdapterLearner
from edgellm.train.config import ALL_LINEAR, LoraConfig
from edgellm.train.model_learner import Weigh
from edgellm.train.row_lengths import RowLengths, Weighed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.arch import ModelGraphs
    from edgellm.formats.tensor import Tensor
    from edgellm.train.documents import Documents


ROUTER = "ffn_gate_inp"


class LoraLearner(AdapterLearner):
    """An adapter of a model.

    Parameters are named after the weights that they stand beside: `blk.0.attn_q.weight.lora_a` [rank, n_in], and
    `.lora_b` [rank, n_out], which is B transposed; with DoRA `.magnitude` [n_out]. Beside experts each has its own:
    `blk.0.ffn_up_exps.weight.lora_a` [n_experts, rank, n_in] and `.lora_b` [n_experts, n_out, rank].
    """

    def changes(self) -> Mapping[str, Sequence[Change]]:
        self._targets = targets_of(self.model._runner.graphs, self.config)
        check_rank(self._targets, self.config)
        self._chances = np.zeros((len(self._targets), 2), np.int64)
        self.begin_pass(0, 0)
        low_ranks = self._low_ranks()
        if self.config.use_dora:
            low_ranks = self._with_lengths(low_ranks)
        return {name: [found] for name, found in low_ranks.items()}

    def _low_ranks(self) -> dict[str, LowRank]:
        config, random = self.config, np.random.default_rng(self.seed)
        found: dict[str, LowRank] = {}
        for weight, state in zip(self._targets, self._chances, strict=True):
            *of_experts, n_out, n_in = weight.shape
            # As in PEFT: A random and B zero, so that training begins with what the base model does.
            bound = 1 / np.sqrt(n_in)
            a = self.train(f"{weight.name}.lora_a", random.uniform(-bound, bound, (*of_experts, config.rank, n_in)))
            shape = (*of_experts, n_out, config.rank) if of_experts else (config.rank, n_out)
            b = self.train(f"{weight.name}.lora_b", np.zeros(shape))
            chance = Chance(config.dropout, state) if config.dropout else None
            kind = ExpertLowRank if of_experts else LowRank
            found[weight.name] = kind(a, b, config.scale, chance=chance)
        return found

    def adapter(self) -> Adapter:
        """What was learnt, copied."""
        config, model, found = self.config, self.model, self.parameters
        weights = {}
        for weight in self._targets:
            a, b = (found[f"{weight.name}.{kind}"] for kind in ("lora_a", "lora_b"))
            magnitude = found[f"{weight.name}.magnitude"].copy() if config.use_dora else None
            weights[weight.name] = Matrices(a.copy(), (b if b.ndim == 3 else b.T).copy(), config.scale, magnitude)
        return Adapter(
            model.metadata["general.architecture"], weights, base_name=model.path.stem,
            rank_stabilized=config.use_rslora, dropout=config.dropout,
        )  # fmt: skip

    # --- dropout --------------------------------------------------------------------------------------------

    def begin_pass(self, step: int, index: int) -> None:
        """Another choice of what is left out, for each weight."""
        seeds = np.random.SeedSequence((self.seed, step, index)).generate_state(len(self._chances), np.uint64)
        self._chances[:, 0] = seeds.view(np.int64)

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        with self._leaving_out():
            return super().loss_and_gradients(documents, scale)

    def gradients_by(self, documents: Documents, weigh: Weigh, look: Look | None = None) -> NDArray[np.float32]:
        with self._leaving_out():
            return super().gradients_by(documents, weigh, look)

    def gradients_by_hidden(self, documents: Documents, gradient_of: Weigh) -> None:
        with self._leaving_out():
            super().gradients_by_hidden(documents, gradient_of)

    @contextmanager
    def _leaving_out(self) -> Iterator[None]:
        """Only where there are gradients: a loss alone is that of the whole adapter."""
        self._chances[:, 1] = 1
        try:
            yield
        finally:
            self._chances[:, 1] = 0

    # --- lengths of rows ------------------------------------------------------------------------------------

    def _with_lengths(self, low_ranks: dict[str, LowRank]) -> dict[str, LowRank]:
        """The same with magnitudes, which are those of the base model at first."""
        parts = [
            Weighed(weight, *(self.parameters[f"{weight.name}.{kind}"] for kind in ("lora_a", "lora_b")))
            for weight in self._targets
        ]
        self._now: dict[str, NDArray[np.float64]] = {}
        self._lengths = RowLengths(self.model._runner, parts, self.config.scale)
        for weight, lengths in zip(self._targets, self._lengths.own, strict=True):
            self.add_parameter(f"{weight.name}.magnitude", lengths)
        columns = {weight.name: self.derive(f"{weight.name}.columns", (weight.shape[0],)) for weight in self._targets}
        return {name: replace(low_rank, columns=columns[name]) for name, low_rank in low_ranks.items()}

    def before_pass(self) -> None:
        if self.config.use_dora:
            for weight, lengths in zip(self._targets, self._lengths.now(), strict=True):
                self._now[weight.name] = np.where(lengths > 0, lengths, np.inf)
                magnitude = self.parameters[f"{weight.name}.magnitude"]
                self.derived[f"{weight.name}.columns"][:] = magnitude / self._now[weight.name]

    def after_gradients(self) -> None:
        if self.config.use_dora:
            for name, found in self._now.items():
                self.gradients[f"{name}.magnitude"] += self.derived_gradients[f"{name}.columns"] / found


def check_rank(targets: Sequence[Tensor], config: LoraConfig) -> None:
    """Raise UsageError for a rank above the smaller side of every matrix: none of them can have more."""
    if targets and config.rank > (most := max(min(weight.shape[-2:]) for weight in targets)):
        raise UsageError(
            f"rank is {config.rank}, and no matrix that is trained beside has more than {most}; expected up to {most}",
            parameter="rank",
        )


def targets_of(graphs: ModelGraphs, config: LoraConfig) -> list[Tensor]:
    """The weights of the layers that the configuration names. Raises UsageError for one that the model lacks."""
    weights = [node.weight for node in graphs.body.nodes if _has_matrices(node)]
    experts = {_kind(weight) for weight in weights if len(weight.shape) == 3}
    if config.target_modules == ALL_LINEAR:
        left = {ROUTER} | (experts if config.use_dora else set())
        return [weight for weight in weights if _kind(weight) not in left]
    kinds, wanted = {_kind(weight) for weight in weights}, set()
    for name in config.target_modules:
        own = {name, *_OWN_NAMES.get(name, ())} & kinds
        if not own:
            lacks = (
                "and beside embeddings and the head nothing is trained (`edgellm train full` trains them)"
                if name in _AT_THE_ENDS
                else "which this model does not have as a linear layer"
            )
            raise UsageError(
                f"target_modules names {name!r}, {lacks}; it has {', '.join(sorted(kinds))}",
                parameter="target_modules",
            )
        if config.use_dora and own & experts:
            raise UsageError(
                f"target_modules names {name!r}, and {', '.join(sorted(own & experts))} are experts, which method "
                "'dora' does not have; leave them out, or train with method 'lora'",
                parameter="target_modules",
            )
        wanted |= own
    return [weight for weight in weights if _kind(weight) in wanted]


def _has_matrices(node: Node) -> TypeGuard[Linear | ExpertLinear]:
    """Whether it multiplies by a matrix, or by those of experts that a router chooses."""
    return (isinstance(node, Linear) and len(node.weight.shape) == 2) or (
        isinstance(node, ExpertLinear) and node.chosen is not None
    )


def _kind(weight: Tensor) -> str:
    """ "attn_q" for the weight "blk.0.attn_q.weight"."""
    return weight.name.split(".")[-2]


_AT_THE_ENDS = ("lm_head", "output", "embed_tokens", "token_embd", "wte", "embed_out")  # PEFT takes some of these
_GATES, _UPS, _DOWNS = (
    (f"ffn_{part}", f"ffn_{part}_exps", f"ffn_{part}_shexp") for part in ("gate", "up", "down")
)  # fmt: skip
# What checkpoints call layers, and GGUF: every one of those that a model has.
_OWN_NAMES = {
    "q_proj": ("attn_q",), "k_proj": ("attn_k",), "v_proj": ("attn_v",), "o_proj": ("attn_output",),
    "gate_proj": _GATES, "up_proj": _UPS, "down_proj": _DOWNS, "w1": _GATES, "w3": _UPS, "w2": _DOWNS,
    "gate_up_proj": ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps"),
}  # fmt: skip
