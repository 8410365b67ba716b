"""Passes over documents, forward and back: how much each trained weight adds to the loss.

The forward pass is that of inference, with some values kept. The head and the loss run on the rows that have a target,
a few at a time, so there is never a matrix of all logits. Then one program goes back through the body.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from edgellm.arch import ModelGraphs
from edgellm.engine.adapter_set import places
from edgellm.engine.kv_cache import KVCache
from edgellm.engine.runner import Runner, Span
from edgellm.formats.pages import mapped_ranges, release_pages
from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Lowered, Program, Team, Value, lower
from edgellm.graph.backward import Backward, kept_in_bf16
from edgellm.graph.nodes import GLU, Activate, LayerNorm, ReplaceRows, RMSNorm
from edgellm.graph.nodes.dropout import Dropout
from edgellm.graph.nodes.expert_gradients import Balance
from edgellm.graph.nodes.gradients import CrossEntropy
from edgellm.graph.nodes.low_rank import MultiplyColumns
from edgellm.graph.program import RowMemory
from edgellm.graph.weights import multiplied
from edgellm.kernels.isa.amx import has_amx
from edgellm.kernels.records import KV_BLOCK

LOGIT_BYTES = 64 << 20  # of rows whose loss is computed together
LEAST_ROWS, MOST_ROWS = 16, 128
LET_GO_SECONDS = 0.2  # what is read in that time stays in memory


def activations_of_training(runner: Runner) -> str:
    """How passes round what meets quantized weights: as the model is run, but to bfloat16 where the CPU has AMX.

    That is finer than int8 in most places, and several times as quick with many tokens at once.
    """
    activations = runner.target.activations
    return "bf16" if activations == "int8" and has_amx(runner.isa) else activations


Look: TypeAlias = Callable[[np.ndarray], object]


class Texts(Protocol):
    """What is read in one pass: some documents, one behind the other.

    ids:      int32 [n].  lengths: of each document.
    targets:  int32 [n], what should come after each token, or -1 where nothing is learnt.
    weights:  float32 [n], how much each target counts.
    """

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def lengths(self) -> np.ndarray | Sequence[int]: ...
    @property
    def targets(self) -> np.ndarray: ...
    @property
    def weights(self) -> np.ndarray: ...


class Head(NamedTuple):
    """The head with the loss: the rows that it reads, what it finds, and the gradient by what it read."""

    program: Program
    rows: RowMemory
    losses: Value
    gradient: Value | None


def most_blocks(n_tokens: int, n_virtual: int) -> int:
    """Blocks of the cache that documents of so many tokens together can need, in whatever lengths they come.

    Each has n_virtual tokens and one of its own at least, and may leave most of its last block empty.
    """
    n_documents = max(1, n_tokens // (n_virtual + 1))
    return min(n_tokens, n_tokens // KV_BLOCK + n_documents)


class GradientPasses:
    """Forward and backward programs of a model, some of whose weights are trained.

    sums:        for each trained weight, float32 of its shape: backward passes add to it.
    recompute:   keep what layers begin with only, and compute the rest again on the way back (gradient checkpointing):
                 a third more time, a fraction of the memory.
    transposed:  see `graph.lower`.
    in_bf16:     what the way back needs of the way there is kept as bfloat16, in half the memory.
    balance:     a loss of routers that is added to that of the documents; see `Balance`.
    n_virtual:   every document begins with so many tokens that stand for those of an adapter, the first of the batch.

    For one thread at a time, which has the model for itself (`Scheduler.alone`).
    """

    def __init__(
        self,
        runner: Runner,
        graphs: ModelGraphs,
        sums: Mapping[Tensor, np.ndarray],
        n_batch: int,
        recompute: bool = False,
        transposed: Mapping[Tensor, Tensor] | None = None,
        in_bf16: bool = False,
        n_virtual: int = 0,
        balance: Balance | None = None,
    ) -> None:
        self.n_batch, self._n_virtual = n_batch, n_virtual
        self._runner, self._graphs = runner, graphs
        target = replace(runner.target, activations=activations_of_training(runner))
        is_kept = _is_kept_of_layers if recompute else _is_kept
        self._back = Backward(graphs.body, sums, is_kept, in_bf16=in_bf16, balance=balance)
        self._seed = self._back.seed(graphs.hidden)
        self._back.walk()
        body, hidden, kept = graphs.body, graphs.hidden, {value: value for value in self._back.kept}
        if in_bf16:
            body, values, kept = kept_in_bf16(graphs.body, self._back.kept)
            hidden = values[hidden]
        self._hidden = hidden
        weights = (weight for node in graphs.body.nodes if (weight := multiplied(node)) is not None)
        self._file_ranges = mapped_ranges(weight.raw for weight in weights)
        self._let_go_at = 0.0
        forward = lower(body, target, [value for value in kept.values() if value not in body.outputs])
        back = lower(self._back.graph, target, like=graphs.body, transposed=transposed, longest=n_batch)
        heads = [self._head_graph(sums), self._head_graph(None)]
        lowered_heads = [lower(b.graph, target, like=graphs.head, transposed=transposed) for b, *_ in heads]
        every = [forward, back, *lowered_heads]
        runner.store.load([kernel for lowered in every for kernel in lowered.kernels])
        self._team = Team(runner.store, runner.n_threads, max(len(lowered.ops) for lowered in every))
        try:
            # The system gives the memory of those blocks that are used.
            self._cache = KVCache(runner.cache.layers, most_blocks(n_batch, n_virtual))
            self._batch = Batch(n_batch, forward)
            self._batch.prepare_adapters(1 if n_virtual else 0)
            self._forward = self._program(forward, self._batch, {})
            self._gradient = RowMemory(graphs.hidden.width, n_batch)
            found = {inside: self._forward.address(kept[value]) for value, inside in self._back.kept.items()}
            self._backward = self._program(back, self._batch, found | {self._seed: self._gradient.address})
            self._head, self._score = (
                self._head_of(lowered, *found) for lowered, found in zip(lowered_heads, heads, strict=True)
            )
        except BaseException:  # there may be no memory for them
            self._team.close()
            raise

    def close(self) -> None:
        """End the threads, and give back the memory of keys and values."""
        self._team.close()
        self._cache.close()

    # --- passes ---------------------------------------------------------------------------------------------

    def losses(self, texts: Texts, look: Look | None = None) -> np.ndarray:
        """The negative log-likelihood of every target, float32, in order.

        look:   is shown the hidden states that these are made from, float32 [n_targets, n_embd].
        """
        with self._read(texts):
            self._show(texts, look)
            return self._losses(self._score, texts, None)

    def gradients(
        self,
        texts: Texts,
        scale: float,
        weigh: Callable[[np.ndarray], np.ndarray] | None = None,
        look: Look | None = None,
    ) -> np.ndarray:
        """The same; adds scale * the gradient of the sum of weight * loss to the sums.

        weigh:  makes the weights of all losses, in place of the texts' own.
        """
        with self._read(texts) as counts:
            self._show(texts, look)
            (at,) = np.nonzero(texts.targets >= 0)
            weights = texts.weights[at] if weigh is None else weigh(self._losses(self._score, texts, None))
            losses = self._losses(self._head, texts, scale * np.asarray(weights, np.float32))
            self._backward.run(counts, self._let_go)
            return losses

    def gradients_of_hidden(self, texts: Texts, gradient_of: Callable[[np.ndarray], np.ndarray]) -> None:
        """Add the gradient of whatever depends on the hidden states alone.

        gradient_of:  given these, float32 [n, n_embd], says how much the loss grows with each number of them.
        """
        with self._read(texts) as counts:
            hidden = self._forward.view(self._hidden, len(texts.ids))
            self._gradient.array[:] = 0
            self._gradient.fill(gradient_of(hidden.copy()))
            self._backward.run(counts, self._let_go)

    def hidden(self, texts: Texts) -> np.ndarray:
        """The hidden states of all tokens, float32 [n, n_embd]: a copy."""
        with self._read(texts):
            return self._forward.view(self._hidden, len(texts.ids)).copy()

    def _show(self, texts: Texts, look: Look | None) -> None:
        if look is not None:
            look(self._forward.view(self._hidden, len(texts.ids))[texts.targets >= 0])

    @contextmanager
    def _read(self, texts: Texts) -> Iterator[dict[str, int]]:
        """Run the body over documents; their keys and values are in the cache meanwhile. Gives the run's counts."""
        lengths = [int(length) for length in texts.lengths]
        with ExitStack() as stack:
            pieces, start = [], 0
            for length in lengths:
                sequence = self._cache.sequence()
                stack.callback(sequence.release)
                sequence.reserve(length)
                piece = Span(sequence, texts.ids[start : start + length].tolist()).piece()
                pieces.append(piece._replace(adapters=[places(0, length, self._n_virtual)]))
                start += length
            counts = self._batch.fill(pieces) | self._batch.fill_documents(lengths)
            self._forward.run(counts, self._let_go)
            self._let_go(0)
            yield counts

    def _let_go(self, least_seconds: float = LET_GO_SECONDS) -> bool:
        """Let the system take back what layers have read of the file, if the last time was long enough ago.

        A pass takes long, and to read it again from the system's cache of files costs little. Returns False: a run asks
        this between two ops, as it would ask whether to stop.
        """
        now = time.monotonic()
        if now >= self._let_go_at + least_seconds:
            self._let_go_at = now
            for some in self._file_ranges:
                release_pages(some)
        return False

    def _losses(self, head: Head, texts: Texts, weights: np.ndarray | None) -> np.ndarray:
        """Losses of all targets; with weights, their gradient by the hidden states too."""
        (at,) = np.nonzero(texts.targets >= 0)
        hidden = self._forward.view(self._hidden, len(texts.ids))
        losses = np.empty(len(at), np.float32)
        batch = head.program.batch
        if weights is not None:
            self._gradient.array[:] = 0  # of rows without a target
        for start in range(0, len(at), batch.capacity):
            some = slice(start, start + batch.capacity)
            rows = at[some]
            head.rows.fill(hidden[rows])
            head.program.run(batch.targets(texts.targets[rows], 0.0 if weights is None else weights[some]))
            losses[some] = head.program.view(head.losses, len(rows))[:, 0]
            if head.gradient is not None:
                self._gradient.array[rows, : hidden.shape[1]] = head.program.view(head.gradient, len(rows))
        return losses

    # --- programs -------------------------------------------------------------------------------------------

    def _head_graph(self, sums: Mapping[Tensor, np.ndarray] | None) -> tuple[Backward, Value, Value, Value | None]:
        """From the rows of hidden states to losses, and back unless sums are None; also its input."""
        graphs = self._graphs
        selected = graphs.head.made_by(graphs.head.nodes[0])
        # A gradient is coarse anyway; a loss that is reported is as good as the model's own logits.
        is_coarse = sums is not None
        b = Backward(graphs.head, sums or {}, lambda value: value is selected, [selected], is_coarse)
        logits = b.value(graphs.logits)
        losses, *gradient = b.graph.record_all(CrossEntropy(logits, with_gradient=sums is not None))
        b.graph.output(losses)
        if not gradient:
            return b, b.value(selected), losses, None
        b.add(graphs.logits, gradient[0])
        b.walk()
        return b, b.value(selected), losses, b.graph.output(b.found[selected])

    def _head_of(self, lowered: Lowered, b: Backward, selected: Value, losses: Value, gradient: Value | None) -> Head:
        n_rows = LOGIT_BYTES // (4 * self._graphs.logits.width) // 16 * 16
        n_rows = min(max(n_rows, LEAST_ROWS), MOST_ROWS)
        memory = RowMemory(selected.width, n_rows)
        program = self._program(lowered, Batch(n_rows, lowered), {selected: memory.address})
        return Head(program, memory, losses, gradient)

    def _program(self, lowered: Lowered, batch: Batch, inputs: Mapping[Value, int]) -> Program:
        tables = self._cache.tables()
        return Program(lowered, self._runner.store, batch, self._team, tables, inputs)


_CHEAP = (RMSNorm, LayerNorm, GLU, Activate, Dropout, MultiplyColumns, ReplaceRows)


def _is_kept(value: Value) -> bool:
    """What costs little to compute again is not kept."""
    return not isinstance(value.node, _CHEAP)


def _is_kept_of_layers(value: Value) -> bool:
    """The stream of hidden states between layers."""
    return value.name.endswith(("embd", "l_out", "hidden"))
