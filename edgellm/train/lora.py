"""LoRA (Hu et al., 2021): low-rank weights beside frozen linear layers, of whatever format the file has (QLoRA)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import UsageError
from edgellm.graph.adapters import LowRank, adapted
from edgellm.graph.nodes import Linear
from edgellm.train.config import ALL_LINEAR, LoraConfig
from edgellm.train.model_learner import DEFAULT_BATCH, ModelLearner
from edgellm.train.transposed import transposed_copies

if TYPE_CHECKING:
    from edgellm.arch import ModelGraphs
    from edgellm.engine import Model
    from edgellm.formats.tensor import Tensor


class LoraLearner(ModelLearner):
    """An adapter of a model.

    Parameters are named after the weights that they stand beside: `blk.0.attn_q.weight.lora_a` [rank, n_in], and
    `.lora_b` [rank, n_out], which is B transposed.
    """

    def __init__(
        self,
        model: Model,
        config: LoraConfig,
        *,
        n_batch: int = DEFAULT_BATCH,
        seed: int = 0,
        recompute: bool = False,
        in_bf16: bool = False,
    ) -> None:
        super().__init__(model, n_batch)
        self.config = config
        runner = model._runner
        random = np.random.default_rng(seed)
        low_ranks: dict[str, list[LowRank]] = {}
        for weight in _targets(runner.graphs, config):
            n_out, n_in = weight.shape
            # As in PEFT: A random and B zero, so that training begins with what the base model does.
            bound = 1 / np.sqrt(n_in)
            a = random.uniform(-bound, bound, (config.rank, n_in)).astype(np.float32)
            b = np.zeros((config.rank, n_out), np.float32)
            pair = (self.train(f"{weight.name}.{kind}", array) for kind, array in (("lora_a", a), ("lora_b", b)))
            low_ranks[weight.name] = [LowRank(*pair, config.scale)]
        try:
            body, values = adapted(runner.graphs.body, low_ranks)
            graphs = replace(runner.graphs, body=body, hidden=values[runner.graphs.hidden])
            linears = [node.weight for g in (body, graphs.head) for node in g.nodes if isinstance(node, Linear)]
            is_int8 = runner.target.activations == "int8"
            self.prepare(graphs, recompute, transposed_copies(linears, runner.n_threads) if is_int8 else None, in_bf16)
        except BaseException:
            self.close()
            raise


def _targets(graphs: ModelGraphs, config: LoraConfig) -> list[Tensor]:
    """The weights of the layers that the configuration names."""
    weights = [node.weight for node in graphs.body.nodes if isinstance(node, Linear)]
    if config.target_modules == ALL_LINEAR:
        return weights
    kinds = {weight.name.split(".")[-2] for weight in weights}
    if unknown := [name for name in config.target_modules if _own_name(name) not in kinds]:
        raise UsageError(
            f"target_modules names {unknown[0]!r}, which this model does not have; it has {', '.join(sorted(kinds))}",
            parameter="target_modules",
        )
    wanted = {_own_name(name) for name in config.target_modules}
    return [weight for weight in weights if weight.name.split(".")[-2] in wanted]


def _own_name(name: str) -> str:
    return {
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }.get(name, name)  # fmt: skip
