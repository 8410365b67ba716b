"""LoRA (Hu et al., 2021): low-rank weights beside frozen linear layers, of whatever format the file has (QLoRA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.arch import ModelGraphs
from edgellm.engine.gradients import GradientPasses
from edgellm.errors import UsageError
from edgellm.formats.tensor import Tensor
from edgellm.graph.adapters import LowRank, adapted
from edgellm.graph.nodes import Linear
from edgellm.quants import FORMATS
from edgellm.train.config import ALL_LINEAR, LoraConfig
from edgellm.train.documents import Documents
from edgellm.train.transposed import transposed_copies

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.engine import Model

DEFAULT_BATCH = 512  # tokens of a pass


class LoraLearner:
    """A model whose adapter is trained; see `Learner`. It has the model for itself until `close`.

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
    ) -> None:
        self.config, self.n_batch = config, n_batch
        runner = model._runner
        weights = _targets(runner.graphs, config)
        random = np.random.default_rng(seed)
        self.parameters: dict[str, NDArray[np.float32]] = {}
        low_ranks: dict[str, list[LowRank]] = {}
        tensors: dict[str, Tensor] = {}
        for weight in weights:
            n_out, n_in = weight.shape
            # As in PEFT: A random and B zero, so that training begins with what the base model does.
            bound = 1 / np.sqrt(n_in)
            a = random.uniform(-bound, bound, (config.rank, n_in)).astype(np.float32)
            pair = []
            for kind, array in (("lora_a", a), ("lora_b", np.zeros((config.rank, n_out), np.float32))):
                name = f"{weight.name}.{kind}"
                self.parameters[name] = array
                tensors[name] = _tensor(name, array)
                pair.append(tensors[name])
            low_ranks[weight.name] = [LowRank(*pair, config.scale)]
        self.gradients = {name: np.zeros_like(array) for name, array in self.parameters.items()}
        sums = {tensor: self.gradients[name] for name, tensor in tensors.items()}
        body, values = adapted(runner.graphs.body, low_ranks)
        graphs = ModelGraphs(
            body, runner.graphs.head, values[runner.graphs.hidden], runner.graphs.hidden_input, runner.graphs.logits
        )
        every = [node.weight for graph in (body, graphs.head) for node in graph.nodes if isinstance(node, Linear)]
        copies = transposed_copies(every, runner.n_threads) if runner.target.activations == "int8" else {}
        self._alone = model._scheduler.alone()
        self._alone.__enter__()
        try:
            self._passes = GradientPasses(model._scheduler, graphs, sums, n_batch, recompute, copies)
        except BaseException:
            self._alone.__exit__(None, None, None)
            raise

    def begin_pass(self, step: int, index: int) -> None:
        pass

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        return _weighted(self._passes.gradients(documents, scale), documents)

    def loss(self, documents: Documents) -> tuple[float, float]:
        return _weighted(self._passes.losses(documents), documents), documents.total_weight

    def negative_log_likelihoods(self, documents: Documents) -> NDArray[np.float32]:
        return self._passes.losses(documents)

    def close(self) -> None:
        """Give the model back."""
        self._passes.close()
        self._alone.__exit__(None, None, None)


def _weighted(losses: NDArray[np.float32], documents: Documents) -> float:
    return float(np.dot(losses.astype(np.float64), documents.weights[documents.targets >= 0]))


def _tensor(name: str, array: NDArray[np.float32]) -> Tensor:
    """An array as a weight that programs read where it is."""
    return Tensor(name, array.shape, FORMATS["F32"], array.view(np.uint8).reshape(len(array), -1))


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
