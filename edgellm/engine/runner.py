"""Runs a model's programs: batches of tokens in, logits out, and the cache grows by those tokens."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgellm.arch import Architecture, ModelConfig, ModelGraphs
from edgellm.dataclass import dataclass
from edgellm.engine.adapter_set import MOST_TOGETHER, NO_ADAPTERS, Adapter, AdapterSet, Slot, slots_of
from edgellm.engine.allocation import allocate_cache
from edgellm.engine.damage import no_numbers
from edgellm.engine.kv_cache import KVCache, Sequence
from edgellm.engine.layout import LayOut, Layout, lay_out
from edgellm.engine.sampling.compiled_groups import CompiledGroupLoops, sampling_kernels
from edgellm.errors import EdgellmError, UsageError
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Lowered, Piece, Program, Target, Team, Tuning, Value, lower
from edgellm.graph.lowering import ExpertSums, states_table
from edgellm.graph.nodes import maxima
from edgellm.graph.team import KERNELS
from edgellm.graph.tuner import measure_and_remember, remembered
from edgellm.graph.weights import most_common_kind
from edgellm.kernels.isa import choose
from edgellm.kernels.kv_types import CACHE_TYPES
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.store import KernelStore, Progress
from edgellm.machine import default_threads
from edgellm.params import RuntimeConfig

if TYPE_CHECKING:
    from edgellm.engine.laying_out import LayingOut
    from edgellm.engine.square_sums import SquareSums

HEAD_TOKENS = 16  # logits are made for so many tokens at a time: with a large vocabulary each is a megabyte
MOST_VARIANTS = 4  # programs with adapters that are kept; each has memory for the values of a batch
OPS_BESIDE_NODE = 4  # that an adapter adds to a node, at most
EMPTY: Mapping[Any, Any] = MappingProxyType({})
# What a closed one has no more.
GIVEN_BACK = (
    *("base", "graphs", "team", "store", "target", "layout"),
    *("_running", "_variants", "_body_batch", "_head_batch", "_file"),
)


class Span(NamedTuple):
    """New tokens of one sequence in a batch; the last n_guesses of them may be wrong."""

    sequence: Sequence
    token_ids: SequenceOf[int]
    n_guesses: int = 0

    def piece(self, slots: tuple[Slot, ...] = ()) -> Piece:
        """The same for a batch, of a program with those adapters; the cache must have room already."""
        start, n = len(self.sequence), len(self.token_ids)
        uses = self.sequence.adapters.uses_of(slots, start, n)
        states = self.sequence.plan_states(n, self.n_guesses)
        return Piece(self.token_ids, start, self.sequence.slots(n), self.sequence.block_tables, uses, states)


@dataclass(frozen=True, eq=False)
class Programs:
    """A model's two programs: `body` from token ids to hidden states, `head` from those to logits."""

    body: Program
    head: Program

    def __iter__(self) -> Iterator[Program]:
        return iter((self.body, self.head))


@dataclass(eq=False)
class Variant:
    """A model as it is run with some adapters beside it, or with none.

    slots:     the adapters, in the order of the batch's tables.
    graphs:    its nodes. maxima: the largest logits, see `Runner.logits_of`.
    programs:  what is run.
    """

    slots: tuple[Slot, ...]
    graphs: ModelGraphs
    maxima: Value
    programs: Programs


class Runner:
    """A model in memory: its programs, their data, and the cache. For one thread at a time; the scheduler sees to that.

    graphs:  the model's nodes, without adapters. base: how they are run, by the `team`.

    A team that is given must have been made for a model that never runs at the same time, and outlive this one.
    lay_out: how weights are put where they are read.
    """

    def __init__(
        self,
        file: GGUFFile,
        architecture: Architecture,
        config: ModelConfig,
        n_ctx: int,
        runtime: RuntimeConfig,
        progress: Progress | None = None,
        team: Team | None = None,
        lay_out: LayOut = lay_out,
    ) -> None:
        self.config = config
        self.isa = choose()
        self.n_batch = min(runtime.n_batch, n_ctx)
        self._file = file  # programs hold addresses in its mapping
        self.store = KernelStore(self.isa)  # the machine code lives as long as this
        self.graphs = architecture.record(config, file.tensors)
        largest = self.graphs.head.output(maxima(self.graphs.logits, MAXIMA_GROUP))
        self.n_vocab = self.graphs.logits.width

        target = target_for(self.graphs, self.store, runtime, progress)
        self.layout = lay_out(file, (self.graphs.body, self.graphs.head), runtime, target.tuning, progress)
        self.target = replace(target, tiles=self.layout.tiles, copies=self.layout.copies)
        self.n_threads = self.target.tuning.n_threads
        body, head = lower(self.graphs.body, self.target), lower(self.graphs.head, self.target)
        of_samplers = sampling_kernels() if self.store.has_compiled else []  # while people are told of compiling
        self.store.load([*body.kernels, *head.kernels, *KERNELS, *of_samplers], progress)

        self.cache = allocate_cache(body.cache_layers, body.state_bytes, n_ctx, self.n_batch, runtime.cache_bytes)
        n_nodes = len(self.graphs.body.nodes)
        max_ops = len(body.ops) + n_nodes + OPS_BESIDE_NODE * MOST_TOGETHER * n_nodes
        is_shared = team is not None and team.max_ops >= max_ops and team.n_threads == self.n_threads
        self.team = team if team is not None and is_shared else Team(self.store, self.n_threads, max_ops)
        self.loops = CompiledGroupLoops(self.store, self.team)  # for samplers
        self._laying_out = self._begin_layout()
        self._end = weakref.finalize(self, _end, None if is_shared else self.team, self.cache, self._laying_out)
        self._bound: dict[Tensor | Value, np.ndarray] = {}  # weights that are read elsewhere at the moment
        try:
            self._body_batch, self._head_batch = Batch(self.n_batch, body), Batch(HEAD_TOKENS, head)
            self.base = Variant((), self.graphs, largest, self._programs(self.graphs, body, head))
            self._running = self.base  # of the last batch
            self._rows_made: SequenceOf[int] | None = None  # whose logits were made along with it
            self._variants: dict[tuple[Slot, ...], Variant] = {}  # most recently used last
        except BaseException:
            self._end()
            raise

    def run_body(
        self,
        spans: SequenceOf[Span],
        stop: Callable[[], bool] | None = None,
        variant: Variant | None = None,
        rows: SequenceOf[int] = (),
    ) -> bool:
        """Hidden states of some spans in one batch of at most n_batch tokens, for which the cache has room.

        stop:     see `Program.run`; False when it ended the run. Who calls counts the tokens as cached.
        variant:  what is run; None takes the model with the adapters of the spans.
        rows:     for which `logits_of` will be asked: of few tokens, logits are made at once.
        """
        running = self._running = variant or self.variant([span.sequence.adapters for span in spans])
        counts = self._body_batch.fill([span.piece(running.slots) for span in spans])
        body, head = running.programs
        self._rows_made = None
        if not 0 < len(rows) <= HEAD_TOKENS or not body.prepare(counts):
            return body.run(counts, stop)
        head.prepare(self._select(rows))
        body.team.run(body, then=head)
        self._rows_made = rows
        return True

    def logits_of(self, rows: SequenceOf[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For some rows of the last batch, logits, float32 [n_vocab], and the largest of every MAXIMA_GROUP of them.

        They are views of where they were made, valid until the next is asked for.
        """
        for start in range(0, len(rows), HEAD_TOKENS):
            n = len(rows) if rows is self._rows_made else self.run_head(rows[start : start + HEAD_TOKENS])
            running, head = self._running, self._running.programs.head
            yield from zip(head.view(running.graphs.logits, n), head.view(running.maxima, n), strict=True)

    def run_head(self, rows: SequenceOf[int]) -> int:
        """The head for some rows of the last batch, HEAD_TOKENS at most; returns how many these are."""
        self._rows_made = None
        self._running.programs.head.run(self._select(rows))
        return len(rows)

    def _select(self, rows: SequenceOf[int]) -> dict[str, int]:
        return self._head_batch.select(rows, self._body_batch.adapters if self._running.slots else ())

    def run_head_alone(self, variant: Variant, n: int, adapters: AdapterSet) -> None:
        """The head of a variant for n rows that its input has, whatever the last batch was."""
        self._rows_made = None
        scales = [np.full(n, adapters.scales[slot], np.float32) for slot in variant.slots]
        variant.programs.head.run(self._head_batch.select(range(n), scales))

    def check_numbers(self, maxima: np.ndarray, adapters: AdapterSet = NO_ADAPTERS) -> None:
        """Raise FileProblem, naming damaged tensors, when logits are NaN or infinite, as `maxima` tells."""
        if not math.isfinite(maxima[maxima.argmax()]):  # NaN is the largest to `argmax`
            raise no_numbers(self._file, self.target.kv_type, adapters)

    def check_open(self) -> None:
        """Raises UsageError after `close`."""
        if not self._end.alive:
            raise UsageError("the model is closed")

    # --- how weights lie ------------------------------------------------------------------------------------

    def _begin_layout(self) -> LayingOut | None:
        """Begin to make the tiles that are worth it."""
        if self.layout.coming is None:
            return None
        from edgellm.engine.laying_out import LayingOut  # which few starts need

        return LayingOut(self.layout.coming, (self.graphs.body, self.graphs.head), self.target)

    def take_tiles(self) -> None:
        """Go on from tiles that were made meanwhile. Between steps, while nobody has the model for itself."""
        if self._laying_out is None or not self._laying_out.is_over or self._bound:
            return
        found, coming, usual = self._laying_out.found, self.layout.coming, self.target
        self._laying_out = None
        if found is None or coming is None:
            return
        layout = Layout.beside(self._file, "tiles", found, coming.n_bytes)
        self.target = replace(usual, tiles=found, copies=layout.copies)
        try:
            programs = self._lowered_programs(self.graphs)
        except (MemoryError, EdgellmError):  # the file is as good
            self.target = usual
            return
        for slots in list(self._variants):
            self._drop(slots)
        old, self.base.programs = self.base.programs, programs
        self.team.forget(old)
        self.layout = layout

    def wait_for_tiles(self) -> None:
        """For who measures, and has the model for itself: go on from those that are being made."""
        if self._laying_out is not None:
            self._laying_out.wait()
            self.take_tiles()

    # --- with adapters --------------------------------------------------------------------------------------

    def variant(self, sets: Collection[AdapterSet]) -> Variant:
        """The model with all adapters of some sets beside it, lowered when it is first asked for."""
        if not any(sets):
            return self.base
        slots = slots_of(sets)
        if slots == self._running.slots:  # as it mostly is, in every step
            return self._running
        found = self._variants.pop(slots, None) or self._new_variant(slots)
        self._variants[slots] = found
        while len(self._variants) > MOST_VARIANTS:
            self._drop(next(iter(self._variants)))
        return found

    def _new_variant(self, slots: tuple[Slot, ...]) -> Variant:
        from edgellm.engine.adapters import changes_of
        from edgellm.graph.adapters import adapted

        changes, plain = changes_of(slots), self.graphs
        body, of_body = adapted(plain.body, changes)
        head, of_head = adapted(plain.head, changes)
        hidden, hidden_input, logits = of_body[plain.hidden], of_head[plain.hidden_input], of_head[plain.logits]
        graphs = ModelGraphs(body, head, hidden, hidden_input, logits)
        for batch in (self._body_batch, self._head_batch):
            batch.prepare_adapters(len(slots))
        return Variant(slots, graphs, of_head[self.base.maxima], self._lowered_programs(graphs))

    def first_layers(self, architecture: Architecture, config: ModelConfig) -> Variant:
        """The model as if it had no more layers than `config`, without adapters, on the same cache and batches."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if _layer_of(name) < config.n_layers}
        graphs = architecture.record(config, tensors)
        largest = graphs.head.output(maxima(graphs.logits, MAXIMA_GROUP))
        return Variant((), graphs, largest, self._lowered_programs(graphs))

    def forget(self, adapter: Adapter) -> None:
        """Release the programs that have an adapter."""
        for slots in [slots for slots in self._variants if any(slot.adapter is adapter for slot in slots)]:
            self._drop(slots)

    def _drop(self, slots: tuple[Slot, ...]) -> None:
        dropped = self._variants.pop(slots)
        if self._running is dropped:
            self._running = self.base
        self.team.forget(dropped.programs)

    # --- other programs -------------------------------------------------------------------------------------

    @contextmanager
    def square_sums(self, adapters: AdapterSet = NO_ADAPTERS) -> Iterator[SquareSums]:
        """Meanwhile, every run adds up the squares of what each linear is given, see `SquareSums`.

        Of the linear that makes logits, only tokens whose logits are asked for count. Nobody else may run the model,
        and nothing with other adapters.
        """
        variant = self.variant({adapters})
        from edgellm.engine.square_sums import SquareSums  # which importance matrices alone need

        sums = SquareSums((variant.graphs.body, variant.graphs.head))
        programs = self.lowered_programs(square_sums=sums.by_value, variant=variant, expert_sums=sums.by_experts)
        with self.replaced(variant, programs):
            yield sums

    def lowered_programs(
        self,
        taps: SequenceOf[Value] = (),
        given: Mapping[Value, int] | None = None,
        square_sums: Mapping[Value, np.ndarray] | None = None,
        variant: Variant | None = None,
        expert_sums: ExpertSums = EMPTY,
    ) -> Programs:
        """Other programs of the same model, on the same cache and batches (see `graph.lower`).

        given:  where the rows are of values that are not computed. variant: with which adapters.
        """
        graphs = (variant or self.base).graphs
        return self._lowered_programs(graphs, taps, given or {}, square_sums or {}, expert_sums)

    def _lowered_programs(
        self,
        graphs: ModelGraphs,
        taps: SequenceOf[Value] = (),
        given: Mapping[Value, int] = EMPTY,
        sums: Mapping[Value, np.ndarray] = EMPTY,
        expert_sums: ExpertSums = EMPTY,
    ) -> Programs:

        def lowered(graph: Graph) -> Lowered:
            def of_graph(values: Iterable[Value]) -> list[Value]:
                return [value for value in values if value.graph is graph]

            own_sums = {value: sums[value] for value in of_graph(sums)}
            own_experts = {node: found for node, found in expert_sums.items() if node.inputs[0].graph is graph}
            return lower(graph, self.target, of_graph(taps), of_graph(given), own_sums, own_experts)

        body, head = lowered(graphs.body), lowered(graphs.head)
        self.store.load([*body.kernels, *head.kernels])
        return self._programs(graphs, body, head, given)

    def _programs(
        self, graphs: ModelGraphs, body: Lowered, head: Lowered, given: Mapping[Value, int] = EMPTY
    ) -> Programs:
        tables = self.cache_tables()
        hidden, hidden_input = graphs.hidden, graphs.hidden_input
        of_body, of_head = (
            {value: address for value, address in given.items() if value in lowered.outside} for lowered in (body, head)
        )
        first = Program(body, self.store, self._body_batch, self.team, tables, of_body)
        second = Program(
            head, self.store, self._head_batch, self.team, inputs={hidden_input: first.address(hidden)} | of_head
        )
        for program in (first, second):
            program.bind(self._bound)
        return Programs(first, second)

    def cache_tables(self) -> dict[str, int]:
        """Where the layers of the cache are, and states of others, by the names that programs have for them."""
        states = self.cache.states.memory if self.cache.states is not None else ()
        return self.cache.tables() | {states_table(i).name: memory.ctypes.data for i, memory in enumerate(states)}

    @contextmanager
    def replaced(self, variant: Variant, programs: Programs) -> Iterator[None]:
        """Meanwhile, a variant is run by other programs, which are forgotten then."""
        usual, variant.programs = variant.programs, programs
        try:
            yield
        finally:
            variant.programs = usual
            self.team.forget(programs)

    @property
    def programs(self) -> Programs:
        """What is run without adapters."""
        return self.base.programs

    @contextmanager
    def bound(self, memory: Mapping[Tensor | Value, np.ndarray]) -> Iterator[None]:
        """Meanwhile, programs read weights elsewhere. Raises UsageError for what is bound already."""
        if twice := [tensor.name for tensor in memory if tensor in self._bound]:
            raise UsageError(f"{twice[0]!r} is bound already; let that end first")
        self._bound.update(memory)
        try:
            with ExitStack() as bound:
                for variant in (self.base, *self._variants.values()):
                    for program in variant.programs:
                        bound.enter_context(program.bound(memory))
                yield
        finally:
            for tensor in memory:
                del self._bound[tensor]

    @property
    def position_bytes(self) -> int:
        """What each position that is reached takes beside the cache."""
        return self._body_batch.position_bytes

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says of the model."""
        return self._file.metadata

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights, by name."""
        return self._file.tensors

    def close(self) -> None:
        """End the threads and give back all memory, whoever holds this still."""
        self._end()
        for name in GIVEN_BACK:
            self.__dict__.pop(name, None)


def _end(team: Team | None, cache: KVCache, laying_out: LayingOut | None) -> None:
    """End the threads, which must not outlive what they work on, and give back the cache, which parked texts hold."""
    if laying_out is not None:
        laying_out.close()
    if team is not None:
        team.close()
    cache.close()


def _layer_of(name: str) -> int:
    """The layer that a tensor belongs to; -1 for one of the whole model."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and parts[1].isdecimal() else -1


def target_for(graphs: ModelGraphs, store: KernelStore, runtime: RuntimeConfig, progress: Progress | None) -> Target:
    """How to compute a model on this machine, measured on a first start."""
    isa, kv_type, weights = store.isa, CACHE_TYPES[runtime.kv_type], most_common_kind((graphs.body, graphs.head))
    tuning = remembered(store, weights, runtime.n_threads)
    if tuning is None:
        # A file that cannot be run says so before anything is measured.
        lower(graphs.body, Target(isa, Tuning(default_threads()), kv_type, runtime.activations))
        tuning = measure_and_remember(store, weights, runtime.n_threads, progress)
    return Target(isa, tuning, kv_type, runtime.activations)
