"""Backward passes: of any graph, the gradients that torch's autograd finds, and those that small steps show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgellm.errors import UnsupportedError
from edgellm.formats.tensor import Tensor
from edgellm.graph import AddressedArray, Batch, Graph, Piece, Program, Value, lower
from edgellm.graph.backward import Backward
from edgellm.graph.cache_memory import CacheMemory
from edgellm.graph.lowering import adapter_table
from edgellm.graph.nodes import (
    AttentionSpec,
    Linear,
    RMSNorm,
    Rotation,
    activate,
    add,
    add_bias,
    attention,
    columns,
    embed,
    embed_position,
    glu,
    keys_values,
    layer_norm,
    linear,
    maxima,
    replace_rows,
    rms_norm,
    rope,
    scale,
    soft_cap,
)
from edgellm.graph.nodes.dropout import Chance, dropout
from edgellm.graph.nodes.experts import Routing, add_expert_bias, expert_linear, gate, route, sum_experts
from edgellm.graph.nodes.heads import slice_heads
from edgellm.graph.nodes.low_rank import add_scaled, multiply_columns, narrow, widen
from edgellm.graph.nodes.precision import FromBF16, ToBF16
from edgellm.kernels.kv_types import F32_CACHE
from edgellm.kernels.records import KV_BLOCK

from .conftest import Same, lowered, program_of, rows_for, tensor
from .torch_twin import PLACES, Twin

FLOAT32 = 2e-4  # of the largest number: sums in another order, over some twenty steps
LENGTHS = (5, 1, 7)
N_TOKENS = sum(LENGTHS)


class Random:
    """A graph of random steps, all of which some weight had a part in."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.graph = g = Graph()
        self.values = [
            g.input(64),
            embed(g, tensor("embd", 50, 96, format_name=str(rng.choice(["Q8_0", "F32"])), seed=seed), 0.5),
        ]
        for step in range(16):
            self.values.append(self.record(step))
        for index in rng.choice(len(self.values) - 1, 2, replace=False) + 1:
            g.output(self.values[index])

    def weight(self, *shape: int, step: int) -> Tensor:
        return tensor("w", *shape, format_name=str(self.rng.choice(["Q8_0", "Q4_1", "F32"])), seed=step)

    def record(self, step: int) -> Value:
        rng = self.rng
        x, y = (self.values[-1 - min(int(rng.geometric(0.3)), len(self.values)) + 1] for _ in range(2))
        kind = rng.integers(19)
        if kind == 0 or (kind in (1, 2) and x.width != y.width):
            return linear(x, self.weight(int(rng.choice([32, 64, 96, 160])), x.width, step=step))
        if kind == 1:
            return add(x, y)
        if kind == 2:
            return glu(
                x,
                y,
                str(
                    rng.choice(
                        ["silu", "gelu", "gelu_erf", "relu", "relu_squared", "clamped_swiglu", "sigmoid", "linear"]
                    )
                ),
            )
        if kind == 3:
            return add_bias(x, tensor("b", x.width, seed=step))
        if kind == 4:
            return rms_norm(x, tensor("n", x.width // 4, seed=step), 1e-2, n_heads=4)
        if kind == 5:
            n_rot = 2 * int(rng.integers(1, x.width // 8 + 1))
            return rope(x, 4, Rotation(rng.random(n_rot // 2), interleaved=rng.random() < 0.5, magnitude=1.3))
        if kind == 12:
            return scale(x, -0.7)
        if kind == 13:
            return columns(x, x.width // 4, 32) if x.width > 32 else x
        if kind == 6:
            h = narrow(x, tensor("a", 3, x.width, seed=step))
            product = linear(x, self.weight(64, x.width, step=step))
            return widen(product, h, tensor("b", 3, 64, seed=step), 0.7)
        if kind == 7:
            return multiply_columns(x, tensor("c", x.width, seed=step))
        if kind == 9:
            return activate(x, str(rng.choice(["relu", "gelu", "silu", "gelu_erf", "tanh"])))
        if kind == 14:
            n_heads = int(rng.choice([1, 4]))
            shape = (x.width,) if n_heads == 1 else (4, x.width // 4)
            weight, bias = (tensor(name, *shape, seed=step) for name in ("n", "b"))
            return layer_norm(x, weight, bias if rng.random() < 0.5 else None, 1e-2, n_heads)
        if kind == 15:
            return soft_cap(x, 1.5)
        if kind == 16:
            return gate(x, y if y.width == x.width else linear(x, tensor("g", 1, x.width, seed=step)))
        if kind == 17:
            return add(x, embed_position(self.graph, tensor("p", 8, x.width, seed=step)))
        if kind == 18:
            return self.mix(x, step)
        if kind == 10:
            return replace_rows(x, tensor("t", 4, x.width, seed=step), adapter_table(0).name)
        if kind == 8:
            return dropout(x, Chance(0.3, np.array([step, 1])))
        return self.attend(x, y)

    def mix(self, x: Value, step: int) -> Value:
        """A mixture of experts, whose best are clearly the best."""
        rng, n = self.rng, int(self.rng.integers(1, 4))
        normed = rms_norm(x, tensor("n", x.width), 1e-2)
        logits = scale(linear(normed, tensor("r", 5, x.width, seed=step)), 2.0)
        scoring = rng.choice(["softmax", "sigmoid", "logits"])
        bias, scales = (tensor(name, 5, format_name="F16", seed=step) for name in ("bias", "scales"))
        routing = Routing(n, str(scoring), normalize=bool(rng.random() < 0.5), scale=1.3)
        chosen, weights = route(logits, routing, bias if rng.random() < 0.3 else None, scales)
        if rng.random() < 0.5:
            gates, ups = (expert_linear(normed, self.weight(5, 32, x.width, step=step + i), chosen) for i in range(2))
        else:
            both = expert_linear(normed, self.weight(5, 64, x.width, step=step), chosen)
            gates, ups = (slice_heads(both, n, start, 32) for start in (0, 32))
        gates = add_expert_bias(gates, tensor("eb", 5, 32, seed=step), chosen)
        if rank := int(rng.choice([0, 1, 3, 20])):
            narrow_rows = expert_linear(normed, tensor("ea", 5, rank, x.width, seed=step), chosen)
            gates = add_scaled(gates, expert_linear(narrow_rows, tensor("eo", 5, 32, rank, seed=step), chosen), 0.7)
        h = glu(gates, ups, "silu")
        return sum_experts(expert_linear(h, self.weight(5, 64, 32, step=step), chosen), weights)

    def attend(self, x: Value, y: Value) -> Value:
        x, y = (rms_norm(z, tensor("n", z.width), 1e-2) for z in (x, y if y.width == x.width else x))
        head_dim = x.width // 4
        n_kv_heads = int(self.rng.choice([1, 2, 4]))
        k, v = (linear(part, tensor("kv", n_kv_heads * head_dim, x.width, seed=n_kv_heads)) for part in (x, y))
        window = [None, 3][int(self.rng.integers(2))]
        spec = AttentionSpec(0.3, window=window)
        if self.rng.random() < 0.5:
            spec.soft_cap = [None, 1.5][int(self.rng.integers(2))]
            spec.alibi = [None, np.linspace(0.1, 0.5, 4, dtype=np.float32)][int(self.rng.integers(2))]
            spec.sinks = [None, tensor("sinks", 4, format_name="F16")][int(self.rng.integers(2))]
        return attention(x, keys_values(k, v, n_kv_heads), 4, spec)


def gradients(store, team, g: Graph, trained, inputs, ids, seeds, is_kept, wanted=()):
    """By each trained weight and wanted input, of the sum of outputs * seeds, as programs for this machine have it."""
    sums = {weight: np.zeros(weight.shape, np.float32) for weight in trained}
    b = Backward(g, sums, is_kept, wanted)
    seeded = [b.seed(value) for value in g.outputs]
    b.walk()
    found = [b.graph.output(b.found[value]) for value in wanted]
    taps = [value for value in b.kept if value not in g.outputs and value not in g.inputs]
    forward = lowered(g, 2, taps=taps, activations="f32", kv_type=F32_CACHE)
    back = lower(b.graph, forward.target, like=g, longest=160)
    memory = {value: rows_for(value, 160) for value in g.inputs}
    for value, rows in inputs.items():
        memory[value][: len(rows), : value.width] = rows
    n_blocks = 4 * len(LENGTHS) + 4
    cache = CacheMemory(forward.cache_layers, dict.fromkeys(forward.kept, n_blocks))
    tables = cache.tables()
    batch = Batch(160, forward)
    batch.prepare_adapters(1)
    store.load(forward.kernels)
    addresses = {value: rows.ctypes.data for value, rows in memory.items()}
    program = Program(forward, store, batch, team, tables, addresses)
    pieces, start = [], 0
    for block, length in enumerate(LENGTHS, 1):
        slots = 4 * block * KV_BLOCK + np.arange(length)
        table = 4 * block + np.arange(4, dtype=np.int32)
        places = PLACES[start : start + length]
        pieces.append(Piece(ids[start : start + length], 0, Same(slots), Same(AddressedArray(table)), [places]))
        start += length
    counts = program.batch.fill(pieces) | program.batch.fill_documents(LENGTHS)
    program.run(counts)
    from_forward = {}
    for value, inside in b.kept.items():
        from_forward[inside] = memory[value] if value in memory else rows_for(value, 160)
        if value not in memory:
            from_forward[inside][:N_TOKENS, : value.width] = program.view(value, N_TOKENS)
    for gradient, rows in zip(seeded, seeds, strict=True):
        from_forward[gradient] = rows_for(gradient, 160)
        from_forward[gradient][:N_TOKENS, : gradient.width] = rows
    store.load(back.kernels)
    addresses = {value: rows.ctypes.data for value, rows in from_forward.items()}
    program = Program(back, store, program.batch, team, tables, addresses)
    program.run(counts)
    first = {weight: total.copy() for weight, total in sums.items()}
    program.run(counts)  # adds the same once more
    for weight, total in sums.items():
        np.testing.assert_allclose(total, 2 * first[weight], rtol=1e-4, atol=1e-4 * np.abs(total).max())
    return first, [
        # It may be one of the given gradients as it is.
        (
            from_forward[value][:N_TOKENS, : value.width] if value in from_forward else program.view(value, N_TOKENS)
        ).copy()
        for value in found
    ]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("seed", range(35))
def test_gradients_of_any_graph_are_those_of_autograd(store, team_of, seed: int, recompute: bool) -> None:
    case = Random(seed)
    g, rng = case.graph, case.rng
    (x,) = g.inputs
    ids = rng.integers(0, 50, N_TOKENS)
    x_rows = rng.standard_normal((N_TOKENS, x.width), np.float32)
    seeds = [rng.standard_normal((N_TOKENS, value.width), np.float32) for value in g.outputs]

    twin = Twin(g, LENGTHS, ids, {x: x_rows})
    pairs = zip(g.outputs, seeds, strict=True)
    total = sum((twin.values[value] * torch.from_numpy(rows)).sum() for value, rows in pairs)
    if not total.requires_grad:
        pytest.skip("nothing to train")
    total.backward()
    trained = [w for w, numbers in twin.weights.items() if w.format.name == "F32" and numbers.grad is not None]
    wanted = [x] if twin.values[x].grad is not None else []

    def is_kept(value: Value) -> bool:
        return not recompute or not isinstance(value.node, Linear | RMSNorm) or value in g.outputs

    sums, found = gradients(store, team_of(2), g, trained, {x: x_rows}, ids, seeds, is_kept, wanted)
    for weight, ours in sums.items():
        given = twin.weights[weight].grad.numpy()
        assert np.abs(ours - given).max() <= FLOAT32 * max(1e-3, np.abs(given).max()), weight.name
    for ours in found:
        given = twin.values[x].grad.numpy()
        assert np.abs(ours - given).max() <= FLOAT32 * max(1e-3, np.abs(given).max())


def test_what_no_trained_weight_depends_on_is_not_gone_through() -> None:
    g = Graph()
    frozen, trained = tensor("frozen", 64, 64), tensor("trained", 64, 64)
    h = linear(g.input(64), frozen)
    y = g.output(linear(h, trained))
    b = Backward(g, {trained: np.zeros((64, 64), np.float32)})
    b.seed(y)
    b.walk()
    assert [node.kind for node in b.graph.nodes] == ["OuterSum"]
    assert list(b.kept) == [h]


def test_a_kind_that_cannot_be_trained_through_is_refused_by_name() -> None:
    g = Graph()
    weight = tensor("w", 64, 64)
    y = g.output(maxima(linear(g.input(64), weight), 64))
    b = Backward(g, {weight: np.zeros((64, 64), np.float32)})
    b.seed(y)
    with pytest.raises(UnsupportedError, match="a node of the kind Maxima"):
        b.walk()


@pytest.mark.parametrize(
    ("n_values", "spec", "words"),
    [
        (64, AttentionSpec(0.25, causal=False), "that is not causal"),
        (32, AttentionSpec(0.25), "with keys of 16 and values of 8 dimensions"),
    ],
)
def test_attention_that_cannot_be_trained_through_is_refused_by_name(n_values, spec, words: str) -> None:
    g = Graph()
    weight = tensor("w", 64, 64)
    h = linear(g.input(64), weight)
    y = g.output(attention(h, keys_values(h, g.input(n_values), 4), 4, spec))
    b = Backward(g, {weight: np.zeros((64, 64), np.float32)})
    b.seed(y)
    b.walk()
    with pytest.raises(UnsupportedError, match=f"^training through attention {words} is not built yet$"):
        lowered(b.graph)


def test_bfloat16_is_torchs(store, team_of) -> None:
    """The nearest one, ties to even; and what is no number stays none."""
    g = Graph()
    x = g.input(70)
    y = g.output(g.record(FromBF16(g.record(ToBF16(x)), 70)))
    rows = np.random.default_rng(1).standard_normal((9, 70), np.float32)
    rows[0, :6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4e38]
    rows[1] = (np.arange(70, dtype=np.uint32) * 0x8000 + 0x3F800000).view(np.float32)  # ties
    rows[2] = np.full(70, 0x7FFFFFFF, np.uint32).view(np.float32)
    memory = rows_for(x, 16)
    memory[:9, :70] = rows
    program = program_of(lowered(g), store, team_of(1), inputs={x: memory})
    program.run({"tokens": 9})
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(program.view(y, 9), torch.from_numpy(rows).bfloat16().float().numpy())
