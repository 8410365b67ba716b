"""From nodes to ops, for one way to compute them: what the rules of all kinds of nodes share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from edgellm.dataclass import dataclass
from edgellm.formats.tensor import Tensor
from edgellm.graph.cache_memory import CacheLayer, block_step, cache_table
from edgellm.graph.nodes import Attention, Graph, KeysValues, Linear, Node, Rope, Value
from edgellm.graph.ops import Buffer, ByRows, Chunks, Fixed, Op, Quantized, Rows, Split, Table
from edgellm.graph.tuning import Tuning
from edgellm.kernels import gradient_records, records
from edgellm.kernels.group_sums import sums_for
from edgellm.kernels.isa import Isa
from edgellm.kernels.kv_types import F16_CACHE, RECENT, CacheType
from edgellm.kernels.registry import find
from edgellm.kernels.schema import LINE, Schema
from edgellm.machine import last_level_cache
from edgellm.quants import BlockFormat
from edgellm.quants.floats import FloatFormat

ELEMENTS_PER_CHUNK = 4096  # of elementwise work: a few microseconds
SQUARES_PER_CHUNK = 64  # columns that are added up over all tokens, a multiple of ROW_ALIGN

N = TypeVar("N", bound=Node)
Rule = Callable[["Lowering", N], None]
RULES: dict[type[Node], Rule[Any]] = {}


def tokens_per_chunk(width: int) -> int:
    """Of rows that are so wide. A power of two, for batches often are one, and all threads should have the same."""
    return 1 << max(1, ELEMENTS_PER_CHUNK // width).bit_length() - 1


def rule(kind: type[N]) -> Callable[[Rule[N]], Rule[N]]:
    """Make a function the rule of a kind of node: it adds the ops that make the node's value."""

    def register(function: Rule[N]) -> Rule[N]:
        RULES[kind] = function
        return function

    return register


@dataclass(frozen=True)
class Target:
    """A way to compute.

    activations:  "int8": inputs of quantized weights are rounded to int8 in groups, which is fast and nearly exact;
                  "f32": nothing is rounded, the reference;
                  "bf16": those inputs, and weights, are rounded to bfloat16 where they meet, on CPUs with AMX: many
                  tokens at once, as training has them.
    tiles:        weights that int8 inputs meet as tiles (see `quants.tiles`): uint8 [n_tiles, tile_bytes].
    copies:       weights that are read elsewhere than in the file: their bytes.
    """

    isa: Isa
    tuning: Tuning
    kv_type: CacheType = F16_CACHE
    activations: str = "int8"
    tiles: Mapping[Tensor, np.ndarray] = field(default_factory=dict, compare=False)
    copies: Mapping[Tensor, np.ndarray] = field(default_factory=dict, compare=False)

    @property
    def small_batch(self) -> int:
        """Up to how many tokens kernels for small batches are run."""
        return self.tuning.tiles_small_batch if self.tiles else self.tuning.small_batch

    @cached_property
    def tiles_prefetch(self) -> str:
        """How tiles are prefetched. What the last level of cache can hold until the next token may stay there."""
        what, n_bytes = self.tuning.tiles_prefetch, sum(tiles.nbytes for tiles in self.tiles.values())
        return "first_level" if what == "non_temporal" and n_bytes <= last_level_cache() else what


class Lowering:
    """Ops as the rules add them, and what they need beside them.

    rotations, windows, kept, group_size, cache_layers, state_bytes:  see `Lowered`.
    partial:  memory for results of attention that are put together by another op; one for all layers.
    transposed, longest:  see `lower`.
    """

    def __init__(
        self,
        graph: Graph,
        target: Target,
        nodes: list[Node],
        kept: Iterable[Value],
        like: Graph | None = None,
        transposed: Mapping[Tensor, Tensor] | None = None,
        longest: int = 0,
    ) -> None:
        self.graph, self.target, self.longest = graph, target, longest
        self.transposed = transposed or {}
        self.ops: list[Op] = []
        # Of the whole graph, whatever part of it is lowered: so all programs of a graph fit one cache and one batch.
        # Those of its backward pass fit them too.
        whole = like or graph
        attentions = [node for node in whole.nodes if isinstance(node, Attention) and node.source.cached]
        sources = [node for node in whole.nodes if isinstance(node, KeysValues) and node.cached]
        self.rotations = list(dict.fromkeys(node.rotation for node in whole.nodes if isinstance(node, Rope)))
        self._attentions = attentions
        self.windows = list(dict.fromkeys(node.spec.window for node in attentions))
        self.group_size = max((node.n_heads // node.source.n_heads for node in attentions), default=1)
        self._caches = {node: layer for layer, node in enumerate(sources)}
        self._kept = _kept_windows(attentions)
        self.kept = list(dict.fromkeys(self.kept_of(node) for node in sources))
        self.cache_layers = [
            CacheLayer(node.n_heads, *self.head_dims(node), target.kv_type, self.kept_of(node)) for node in sources
        ]
        if recent := target.kv_type.recent:
            self.kept.append(RECENT)
            self.cache_layers += [layer._replace(kv_type=recent, window=RECENT) for layer in self.cache_layers]
        recurrent = [node for node in whole.nodes if node.n_state]
        self.state_bytes = [-(-4 * node.n_state // LINE) * LINE for node in recurrent]
        self._states = {node: index for index, node in enumerate(recurrent)}
        self.partial: Fixed | None = None
        self.quantizing: set[KeysValues] = set()  # layers of the cache whose full blocks an op takes care of
        self.constants: dict[Tensor, np.ndarray] = {}
        # By the value of a router, or none: see `lowering/experts.py`.
        self.sorted_pairs: dict[tuple[Value | None, int, bool], tuple[Rows, Fixed]] = {}
        self._rows: dict[Value, Rows] = {}
        self._quantized: dict[tuple[Value, int], Quantized] = {}
        self._halves: dict[Value, Rows] = {}
        linears = [node for node in nodes if isinstance(node, Linear)] if target.activations == "int8" else []
        # What quantized weights are given as int8 in one plane; and what low-rank steps make of it, see `low_rank.py`.
        self.int8_inputs = {
            node.x for node in linears if not (node.sensitive or isinstance(node.weight.format, FloatFormat))
        }
        self.narrowed: dict[Value, Rows] = {}
        self._wanted = set(kept)
        self._n_readers = Counter(value for node in nodes for value in node.inputs)

    def kept_of(self, node: KeysValues) -> int | None:
        """The positions that a layer of the cache keeps; None is all."""
        return self._kept.get(node.copy_of or node)

    def attentions_to(self, node: KeysValues) -> list[Attention]:
        """All that look at the layer of the cache that a node fills."""
        layer = node.copy_of or node
        return [each for each in self._attentions if (each.source.copy_of or each.source) is layer]

    def head_dims(self, node: KeysValues) -> tuple[int, int]:
        """How wide the cache has a head of keys, and of values."""
        kind = self.target.kv_type
        return kind.keys.padded(node.key_dim), kind.values.padded(node.value_dim)

    def cache_of(self, node: KeysValues) -> tuple[Table, Table]:
        """The layer of the cache that a node fills, and the bytes from one of its blocks to the next."""
        layer = self._caches[node.copy_of or node]
        return cache_table(layer), block_step(layer)

    def recent_of(self, node: KeysValues) -> tuple[Table, Table]:
        """The same of the layer that has blocks until they are full, where there is one."""
        layer = self._caches[node.copy_of or node] + len(self._caches)
        return cache_table(layer), block_step(layer)

    def states_of(self, node: Node) -> tuple[Table, int]:
        """Where the states of a node are, and the bytes of each."""
        index = self._states[node]
        return states_table(index), self.state_bytes[index]

    # --- where values are ---------------------------------------------------------------------------------

    def rows(self, value: Value) -> Rows:
        return self._rows[value]

    def new_rows(self, value: Value) -> Rows:
        self._rows[value] = Rows(value.width, value.name)
        return self._rows[value]

    def read(self, value: Value) -> Rows:
        """The rows of a value that the node at hand needs."""
        self._n_readers[value] -= 1
        return self._rows[value]

    def make(self, node: Node) -> Rows:
        """Rows for the value of a node."""
        return self.new_rows(self.graph.made_by(node))

    def make_all(self, node: Node) -> list[Rows]:
        """Rows for each value of a node that makes several."""
        return [self.new_rows(value) for value in self.graph.all_made_by(node)]

    def make_from(self, x: Value, node: Node) -> tuple[Rows, Rows]:
        """The rows of x, and rows for the value of a node: the same ones where nobody needs x after it."""
        return self.make_value_from(x, self.graph.made_by(node))

    def make_value_from(self, x: Value, value: Value) -> tuple[Rows, Rows]:
        """The same for one of the values of a node that makes several."""
        source, self._rows[value] = self.change(x, value.name)
        return source, self._rows[value]

    def change(self, x: Value, name: str) -> tuple[Rows, Rows]:
        """The rows of x, and rows for what it becomes, as wide: the same ones where nobody needs x after it."""
        source = self.read(x)
        is_needed = self._n_readers[x] or x in self._wanted
        return source, Rows(x.width, name) if is_needed else source

    def quantized(self, x: Value, n_planes: int, fmt: BlockFormat) -> Quantized:
        """A value as int8 for weights of a format, made once for all linears that read it."""
        if (x, n_planes) not in self._quantized:
            rows = self._rows[x]
            result = self._quantized[x, n_planes] = Quantized(x.width, x.name, n_planes)
            self.add_rows(
                "quantize",
                records.QUANTIZE,
                rows,
                [rows],
                [result],
                options={"n_planes": n_planes},
                x=rows,
                n_cols=x.width,
                to=result,
            )
        found = self._quantized[x, n_planes]
        found.sums.add(sums_for(fmt))
        return found

    def halves(self, x: Value) -> Rows:
        """A value as bfloat16, two numbers in the place of one, made once for all linears that read it."""
        if x not in self._halves:
            rows = self._rows[x]
            to = self._halves[x] = Rows(-(-x.width // 2), x.name)
            schema = gradient_records.BF16_ROWS
            self.add_rows("to_bf16", schema, rows, [rows], [to], x=rows, halves=to, halves_stride=to.stride)
        return self._halves[x]

    def floats(self, weight: Tensor) -> Tensor | np.ndarray:
        """A small weight as float32."""
        if weight.format.name == "F32":
            return weight
        return self.constants.setdefault(weight, np.ascontiguousarray(weight.dequantize()))

    # --- ops ----------------------------------------------------------------------------------------------

    def add(
        self,
        op: str,
        schema: Schema,
        chunks: Chunks,
        reads: list[Any],
        writes: list[Any],
        format: Any = None,
        options: Mapping[str, Any] | None = None,
        small: str | None = None,
        small_options: Mapping[str, Any] | None = None,
        scratch: int = 0,
        split: Split | None = None,
        asking: str | None = None,
        **fields: Any,
    ) -> None:
        """An op by the name of its kernel; small, small_options: those of the kernel for small batches, if another."""
        options = options or {}
        kernel = find(op, format, **options)
        has_small = small or small_options
        small_kernel = find(small or op, format, **options, **(small_options or {})) if has_small else None
        asking_kernel = find(asking, format) if asking else None
        self.ops.append(Op(kernel, schema, fields, chunks, reads, writes, small_kernel, scratch, split, asking_kernel))

    def add_rows(self, op: str, schema: Schema, rows: Rows, reads: list[Any], writes: list[Any], **more: Any) -> None:
        """An op that does something to every row by itself; `rows` is one of its buffers, for their size."""
        per_chunk = tokens_per_chunk(rows.width)
        chunks = Chunks("tokens", per_chunk)
        split = ByRows(chunks.count)
        self.add(op, schema, chunks, reads, writes, split=split, stride=rows.stride, chunk_tokens=per_chunk, **more)

    def maker_of(self, buffer: Buffer) -> Op | None:
        """The last op that writes a buffer."""
        return next((op for op in reversed(self.ops) if buffer in op.writes), None)

    def add_squares(self, value: Value, sums: np.ndarray) -> None:
        """In every run, add up the squares of a value column by column: float64 [stride], over all tokens so far."""
        x = self._rows[value]
        self.add(
            "sum_squares",
            records.SUM_SQUARES,
            Chunks("tokens", 1 << 30, -(-x.stride // SQUARES_PER_CHUNK)),
            [x],
            [],
            x=x,
            stride=x.stride,
            sums=sums,
            chunk_cols=SQUARES_PER_CHUNK,
        )


# What rows of embeddings a batch's tokens take.
TOKEN_IDS, POSITIONS = Table("token ids"), Table("positions")
# What backward passes need beside: where documents begin, and how much each row's target counts.
DOCUMENTS, TARGET_WEIGHTS = Table("documents"), Table("target weights")
# The queries of texts that attend to nothing but themselves, some at a time; and the parts of pairs of texts.
TEXT_TASKS, SEGMENTS = Table("text tasks"), Table("segments")


# Texts of a batch and their pieces, for layers that keep a state.
STATE_TEXTS, STATE_TASKS = Table("state texts"), Table("state tasks")


def states_table(index: int) -> Table:
    """The memory of all states of the index-th layer that keeps some."""
    return Table(f"states {index}")


def adapter_table(index: int) -> Table:
    """How much of an adapter each row of a batch has, for the index-th of its adapters."""
    return Table(f"adapter {index}")


def rotation_table(index: int) -> Table:
    """Where the cosines and sines of positions are, for the index-th of a graph's rotations (see `graph.angles`)."""
    return Table(f"rotation {index}")


def slots_table(kept: int) -> Table:
    """Where keys and values of a batch go, for the index-th of the windows that layers of the cache keep."""
    return Table(f"slots {kept}")


def tasks_table(window: int) -> Table:
    """What a batch's tokens attend to, for the index-th of its windows."""
    return Table(f"tasks {window}")


def full_table(kept: int) -> Table:
    """Which blocks a batch fills, for the index-th of the windows that layers of the cache keep."""
    return Table(f"full blocks {kept}")


def merges_table(window: int) -> Table:
    """Which partial results belong together, for the index-th of its windows."""
    return Table(f"merges {window}")


def _kept_windows(attentions: Iterable[Attention]) -> dict[KeysValues, int | None]:
    """The window of each layer of the cache: that of who looks at it. Where one is seen in two ways, all keep all."""
    found: dict[KeysValues, int | None] = {}
    for node in attentions:
        if found.setdefault(node.source, node.spec.window) != node.spec.window:
            return {}
    return found
