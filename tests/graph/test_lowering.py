"""Lowering: the ops of each way to compute, values that stay what they are, and what no kernel can do by its name."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.errors import UnsupportedError
from edgellm.graph import AddressedArray, Graph, Lowered, Piece, Value
from edgellm.graph.cache_memory import CacheMemory
from edgellm.graph.lowering import linear as lowering_of_linears
from edgellm.graph.nodes import (
    AttentionSpec,
    Rotation,
    add,
    add_bias,
    among_zeros,
    attention,
    columns,
    embed,
    embed_position,
    glu,
    keys_values,
    layer_norm,
    linear,
    maxima,
    rms_norm,
    rope,
    scale,
    select_rows,
    soft_cap,
)
from edgellm.graph.nodes.streams import add_mixed, add_to_columns, keep_large, match_size
from edgellm.kernels import reference
from edgellm.kernels.kv_types import F32_CACHE
from edgellm.kernels.records import KV_BLOCK, MAXIMA_GROUP
from edgellm.quants.tiles import to_tiles

from .conftest import Same, lowered, program_of, rows_for, tensor
from .twin import Text, evaluate

pytestmark = pytest.mark.usefixtures("no_amx")

WIDTH, N_HEADS, N_TOKENS = 64, 4, 11
ROTATION = Rotation(10.0 ** -np.arange(6.0), interleaved=False)  # the last dimensions of a head stay
W = tensor("w", WIDTH, WIDTH, format_name="Q8_0")
BIAS, HALF_BIAS = tensor("b", WIDTH, seed=4), tensor("b", WIDTH, format_name="F16", seed=5)


def kernels(ops: Lowered) -> list[str]:
    return [op.kernel.name for op in ops.ops]


@pytest.fixture
def run(store, team_of):
    """Lower, run and read: the values asked for, of a graph with one input."""
    team = team_of(2)

    def run(g: Graph, rows: np.ndarray, wanted: list[Value], taps=(), activations: str = "int8") -> list[np.ndarray]:
        (x,) = g.inputs
        ops = lowered(g, 2, taps=taps, activations=activations)
        memory = rows_for(x, 16)
        memory[: len(rows), : x.width] = rows
        program = program_of(ops, store, team, inputs={x: memory})
        n = len(rows)
        program.run(program.batch.fill([Piece([0] * n, 0, Same([0] * n), Same(AddressedArray(np.zeros(1, np.int32))))]))
        np.testing.assert_array_equal(memory[:n, : x.width], rows, "what comes from outside was changed")
        return [program.view(value, n).copy() for value in wanted]

    return run


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(6).standard_normal((N_TOKENS, WIDTH), np.float32)


# --- a value is what it was made as ------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda x: add_bias(x, BIAS), lambda x: rope(x, N_HEADS, ROTATION)])
@pytest.mark.parametrize("from_outside", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_every_linear_is_given_its_own_input(run, rows, change, from_outside: bool, again: bool) -> None:
    """Of x, of what was made of x, perhaps of x again: as each would have it alone, rounded to int8 or not."""
    g = Graph()
    source = g.input(WIDTH)
    x = source if from_outside else linear(source, tensor("v", WIDTH, WIDTH, seed=9))
    products, inputs = [g.output(linear(x, W))], [x]
    changed = change(x)
    for value in [changed, x][: 1 + again]:
        products.append(g.output(linear(value, W)))
        inputs.append(value)
    exact = evaluate(g, Text(np.zeros(0), np.zeros(0)), {source: rows})
    assert np.abs(exact[x] - exact[changed]).max() > 0.1
    for product, found in zip(products, run(g, rows, products, activations="f32"), strict=True):
        np.testing.assert_allclose(found, exact[product], atol=2e-5)
    for value, found in zip(inputs, run(g, rows, products), strict=True):
        want = reference.linear(W.raw, W.format, reference.quantize(exact[value]))
        np.testing.assert_allclose(found, want, atol=0.01)  # where a float32 is rounded to the other int8


@pytest.mark.parametrize("name", ["add_bias", "rope"])
def test_in_place_only_where_nobody_else_needs_the_value(name: str) -> None:
    change = {"add_bias": lambda x: add_bias(x, BIAS), "rope": lambda x: rope(x, N_HEADS, ROTATION)}[name]

    def is_in_place(use, **lowering) -> bool:
        g = Graph()
        x = linear(g.input(WIDTH), W)
        values = use(g, x)
        for value in values:
            g.output(value)
        asked = {how: values_of(x) for how, values_of in lowering.items()}
        ops = lowered(g, **asked)
        (op,) = (op for op in ops.ops if op.kernel.op == name)
        assert op.reads == [op.fields["x"]] and op.writes == [op.fields["out"]]
        return op.fields["x"] is op.fields["out"]

    assert is_in_place(lambda g, x: [change(x)])
    assert is_in_place(lambda g, x: [add(x, x), change(x)])  # nobody after it
    assert not is_in_place(lambda g, x: [change(x), add(x, x)])
    assert not is_in_place(lambda g, x: [change(x), linear(x, W)])
    assert not is_in_place(lambda g, x: [x, change(x)])
    assert not is_in_place(lambda g, x: [change(x)], taps=lambda x: [x])
    assert not is_in_place(lambda g, x: [change(x)], given=lambda x: [x])
    assert not is_in_place(lambda g, x: [change(x)], square_sums=lambda x: {x: np.zeros(WIDTH)})
    assert not is_in_place(lambda g, x: [change(x.node.x)])  # an input of the graph
    assert is_in_place(lambda g, x: [change(x), x.node.x])


def test_in_place_again_and_again(run, rows) -> None:
    g = Graph()
    source = g.input(WIDTH)
    x = linear(source, tensor("v", WIDTH, WIDTH, seed=9))
    for _ in range(3):
        x = rope(add_bias(x, BIAS), N_HEADS, ROTATION)
    g.output(x)
    (found,) = run(g, rows, [x])
    np.testing.assert_allclose(found, evaluate(g, Text(np.zeros(0), np.zeros(0)), {source: rows})[x], atol=1e-5)


def test_what_nobody_needs_is_not_computed() -> None:
    g = Graph()
    x = g.input(WIDTH)
    y = add(x, x)
    aside = rms_norm(y, BIAS, 1e-5)
    g.output(linear(y, W))
    assert kernels(lowered(g)) == ["add", "quantize", "linear_prefill.Q8_0"]
    assert kernels(lowered(g, taps=[aside])) == ["add", "rms_norm", "quantize", "linear_prefill.Q8_0"]


def test_a_given_value_cuts_the_graph(store, team_of, rows) -> None:
    g = Graph()
    x = g.input(WIDTH)
    h = rms_norm(add(x, x), BIAS, 1e-5)
    y = g.output(linear(h, W))
    ops = lowered(g, given=[h])
    assert kernels(ops) == ["quantize", "linear_prefill.Q8_0"]
    assert ops.outside == [x, h]
    memory = rows_for(h, 16)
    memory[:N_TOKENS] = rows
    program = program_of(ops, store, team_of(1), inputs={h: memory})
    program.run({"tokens": N_TOKENS})
    want = reference.linear(W.raw, W.format, reference.quantize(rows))
    np.testing.assert_allclose(program.view(y, N_TOKENS), want, atol=2e-5)


# --- ways to compute ---------------------------------------------------------------------------------------


def test_activations_are_quantized_once_for_all_that_read_them() -> None:
    g = Graph()
    x = g.input(WIDTH)
    y = add(x, x)
    for value in (x, y, x):
        g.output(linear(value, W))
    g.output(linear(x, W, sensitive=True))
    g.output(linear(x, W, sensitive=True))
    assert kernels(lowered(g)) == [
        "add",
        *("quantize", "linear_prefill.Q8_0") * 2,
        "linear_prefill.Q8_0",
        *("quantize.2", "linear_prefill.Q8_0.2", "linear_prefill.Q8_0.2"),
    ]


@pytest.mark.parametrize(
    ("format_name", "activations", "sensitive", "kernel", "small"),
    [
        ("Q8_0", "int8", False, "linear_prefill.Q8_0", "linear_decode.Q8_0"),
        ("Q4_K", "int8", True, "linear_prefill.Q4_K.2", "linear_decode.Q4_K.2"),
        ("Q8_0", "f32", False, "linear_f32.Q8_0", None),
        ("Q4_K", "f32", True, "linear_f32.Q4_K", None),
        *(
            ("BF16", activations, sensitive, "linear_f32.BF16", "linear_f32_decode.BF16")
            for activations, sensitive in (("int8", False), ("int8", True), ("f32", False))
        ),
    ],
)
def test_the_kernels_of_a_linear(format_name, activations, sensitive, kernel, small) -> None:
    g = Graph()
    weight = tensor("w", 32, 256, format_name=format_name)
    g.output(linear(g.input(256), weight, sensitive=sensitive))
    ops = lowered(g, activations=activations)
    *quantize, op = ops.ops
    assert (op.kernel.name, op.small_kernel and op.small_kernel.name) == (kernel, small)
    assert bool(quantize) == kernel.startswith("linear_prefill")
    assert {op.kernel, op.small_kernel} - {None} <= set(ops.kernels)


def test_many_tokens_take_amx_where_a_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scale for every 32 weights, in any layout; few tokens never do."""
    monkeypatch.setattr(lowering_of_linears, "has_amx", lambda isa: True)
    for format_name, kernels in (
        ("Q4_K", ("linear_amx.Q4_K", "linear_tiles_amx.Q4_K")),
        ("Q6_K", ("linear_prefill.Q6_K", "linear_tiles_prefill.Q6_K")),
    ):
        g = Graph()
        weight = tensor("w", 32, 256, format_name=format_name)
        g.output(linear(g.input(256), weight))
        for tiles, kernel in zip(({}, {weight: to_tiles(weight.format, weight.raw)}), kernels, strict=True):
            op = lowered(g, tiles=tiles).ops[-1]
            assert op.kernel.name == kernel
            assert op.small_kernel is not None and "amx" not in op.small_kernel.name


@pytest.mark.parametrize("sensitive", [False, True])
def test_weights_as_tiles_give_the_same_bits(store, team_of, rows, sensitive: bool) -> None:
    """In any batch, and with other weights bound: these come as rows, and become tiles."""
    g = Graph()
    x = g.input(WIDTH)
    weight, other = (tensor("w", 40, WIDTH, format_name="Q8_0", seed=seed) for seed in (3, 9))
    y = g.output(linear(x, weight, sensitive=sensitive))
    memory = rows_for(x, 16)
    memory[:N_TOKENS] = rows
    found = []
    for tiles in ({}, {weight: to_tiles(weight.format, weight.raw)}):
        ops = lowered(g, tiles=tiles)
        end = ".Q8_0.2" if sensitive else ".Q8_0"
        names = ("linear_tiles_prefill", "linear_tiles") if tiles else ("linear_prefill", "linear_decode")
        assert (ops.ops[-1].kernel.name, ops.ops[-1].small_kernel.name) == tuple(name + end for name in names)
        program = program_of(ops, store, team_of(2), inputs={x: memory})

        def results(program=program) -> list[bytes]:
            taken = []
            for n in (1, 2, 3, 4, 5, 8, N_TOKENS):
                program.run({"tokens": n})
                taken.append(program.view(y, n).tobytes())
            return taken

        usual = results()
        with program.bound({weight: other.raw}):
            bound = results()
        assert results() == usual != bound
        program.bind({weight: other.raw})
        assert results() == bound
        found.append((usual, bound))
    assert found[0] == found[1]


def test_small_weights_of_other_formats_are_held_as_float32(run, rows) -> None:
    g = Graph()
    y = g.output(add_bias(g.input(WIDTH), HALF_BIAS))
    (constant,) = lowered(g).constants.values()
    np.testing.assert_array_equal(constant, HALF_BIAS.dequantize())
    np.testing.assert_array_equal(run(g, rows, [y])[0], rows + constant)


def test_rotations_and_windows_are_prepared_once() -> None:
    g = Graph()
    other = Rotation(np.ones(8), interleaved=True)
    x = g.input(WIDTH)
    for rotation, window in ((ROTATION, None), (other, 5), (ROTATION, 5), (other, None)):
        q = rope(x, N_HEADS, rotation)
        g.output(attention(q, keys_values(x, x, N_HEADS), N_HEADS, AttentionSpec(0.25, window=window)))
    ops = lowered(g)
    assert ops.rotations == [ROTATION, other]
    assert ops.windows == [None, 5]
    assert len(ops.cache_layers) == 4


def test_layers_may_share_a_cache() -> None:
    g = Graph()
    x = g.input(WIDTH)
    kv = keys_values(x, x, N_HEADS)
    for q in (x, add(x, x)):
        g.output(attention(q, kv, N_HEADS, AttentionSpec(0.25)))
    ops = lowered(g)
    assert kernels(ops).count("kv_append.f16") == len(ops.cache_layers) == 1
    assert len({op.fields["cache"] for op in ops.ops if op.kernel.op == "attention"}) == 1


# --- what is not built -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (AttentionSpec(0.25, causal=False), "that is not causal"),
        (AttentionSpec(0.25, causal=False, window=7), "that is not causal"),
    ],
)
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_attention_that_no_kernel_can_do_is_refused_by_name(spec: AttentionSpec, name: str, activations: str) -> None:
    g = Graph()
    x = g.input(WIDTH)
    g.output(attention(x, keys_values(x, x, N_HEADS), N_HEADS, spec))
    with pytest.raises(UnsupportedError, match=f"^attention {name}.* is not built yet$"):
        lowered(g, activations=activations)


def test_maxima_of_other_groups_are_refused() -> None:
    g = Graph()
    g.output(maxima(g.input(WIDTH), 20))
    with pytest.raises(UnsupportedError, match="maxima of every 20 numbers are not built, only of 64"):
        lowered(g)


# --- whatever the graph ------------------------------------------------------------------------------------


class Random:
    """A graph of random steps, each of values of any age, and some of them asked for in the end."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.graph = g = Graph()
        self.windows: set[int | None] = set()
        self.values = [g.input(64), embed(g, tensor("embd", 50, 96, format_name="Q4_0", seed=seed), 0.5)]
        for step in range(25):
            self.values.append(self.record(step))
        for index in rng.choice(len(self.values) - 1, 3, replace=False) + 1:
            g.output(self.values[index])
        g.output(maxima(self.values[-1], MAXIMA_GROUP))

    def record(self, step: int) -> Value:
        rng = self.rng
        x, y = (self.values[-1 - min(int(rng.geometric(0.3)), len(self.values)) + 1] for _ in range(2))
        to = [32, 64, 96, 160][int(rng.integers(4))]
        kind = rng.integers(10)
        if kind == 0 or (kind in (1, 2) and x.width != y.width):
            weight = tensor("w", to, x.width, format_name=str(rng.choice(["Q8_0", "Q4_1", "F16", "F32"])), seed=step)
            return linear(x, weight, sensitive=rng.random() < 0.3)
        if kind == 1:
            return add(x, y)
        if kind == 2:
            return glu(x, y, "gelu" if rng.random() < 0.5 else "silu")
        if kind == 3:
            return add_bias(x, tensor("b", x.width, format_name="F16" if rng.random() < 0.5 else "F32", seed=step))
        if kind == 4:
            return rms_norm(x, tensor("n", x.width // 4, seed=step), 1e-5, n_heads=4)
        if kind == 5:
            n_rot = 2 * int(rng.integers(1, x.width // 8 + 1))
            return rope(x, 4, Rotation(rng.random(n_rot // 2), interleaved=rng.random() < 0.5))
        if kind == 6:
            return select_rows(x)
        if kind > 7:
            return self.record_more(x, y, step)
        return self.attend(x, y)

    def record_more(self, x: Value, y: Value, step: int) -> Value:
        """What dense decoders beside Llama have."""
        kind, each = self.rng.integers(9), min(x.width, y.width) // 4
        if kind == 0:
            return layer_norm(x, tensor("n", x.width, seed=step), tensor("b", x.width), 1e-5)
        if kind == 1:
            return layer_norm(x, tensor("n", 4, x.width // 4, seed=step), None, 1e-5, n_heads=4)
        if kind == 2:
            return scale(x, -0.7)
        if kind == 3:
            return soft_cap(x, 2.0)
        if kind == 4:
            return add(columns(x, x.width - 32, 32), embed_position(self.graph, tensor("p", N_TOKENS, 32)))
        if kind == 5:
            return among_zeros(x, 5, x.width + 32)
        if kind == 6:
            by = soft_cap(columns(x, 0, 2 * (x.width // each)), 1.0)
            return add_mixed(x, columns(y, 0, 2 * each), by, each, plus=0.5)
        if kind == 7:
            return add_to_columns(x, columns(y, 1, each), each)
        return keep_large(match_size(x, y if y.width == x.width else x, 1e-3), -0.5)

    def attend(self, x: Value, y: Value) -> Value:
        """Heads of 8, 16, 24 or 40 dimensions, and values as wide or not: kernels have them in sixteens."""
        rng = self.rng
        x, y = (rms_norm(z, tensor("n", z.width), 1e-5) for z in (x, y))
        n_kv_heads = int(rng.choice([2, 4]))
        k = x
        if n_kv_heads == 2:
            k, y = (linear(part, tensor("kv", part.width // 2, part.width, seed=n_kv_heads)) for part in (x, y))
        spec = AttentionSpec(
            0.3,
            window=[None, 3][int(rng.integers(2))],
            soft_cap=[None, 2.0][int(rng.integers(2))],
            sinks=[None, tensor("sinks", 4)][int(rng.integers(2))],
            alibi=[None, np.arange(4) / 8][int(rng.integers(2))],
        )
        return attention(x, keys_values(k, y, n_kv_heads), 4, spec)


@pytest.mark.parametrize("seed", range(30))
def test_every_value_of_any_graph_is_what_its_nodes_say(store, team_of, seed: int) -> None:
    """In float32 it is what NumPy has; and looking at it, or not, changes nothing of the others."""
    case = Random(seed)
    g, rng, team = case.graph, case.rng, team_of(2)
    (x,) = g.inputs
    text = Text(rng.integers(0, 50, N_TOKENS), rng.integers(0, N_TOKENS, N_TOKENS))
    x_rows = rng.standard_normal((N_TOKENS, x.width), np.float32)

    def run(activations: str, taps: list[Value]) -> dict[Value, np.ndarray]:
        ops = lowered(g, 2, taps=taps, activations=activations, kv_type=F32_CACHE)
        cache = CacheMemory(ops.cache_layers, dict.fromkeys(ops.kept, 2))
        memory = rows_for(x, 16)
        memory[:N_TOKENS] = x_rows
        program = program_of(ops, store, team, inputs={x: memory}, tables=cache.tables())
        program.batch.select(text.rows)
        slots = KV_BLOCK + np.arange(N_TOKENS)
        program.run(
            program.batch.fill([Piece(text.token_ids, 0, Same(slots), Same(AddressedArray(np.array([1], np.int32))))])
        )
        return {value: program.view(value, N_TOKENS).copy() for value in [*g.outputs, *taps]}

    expected = evaluate(g, text, {x: x_rows})
    found = run("f32", case.values[1:])
    for value, result in found.items():
        assert np.abs(result - expected[value]).max() <= 1e-4 * max(1, np.abs(expected[value]).max()), value.node
    some = [value for value in case.values[1:] if rng.random() < 0.2]
    rounded = run("int8", case.values[1:])
    for whole, activations in ((found, "f32"), (rounded, "int8")):
        for taps in ([], some):
            for value, result in run(activations, taps).items():
                np.testing.assert_array_equal(result, whole[value])


@pytest.mark.parametrize(
    ("n_rows", "turns", "n_threads", "chunk_rows"),
    [(4096, 4, 2, 512), (2048, 7, 2, 128), (100_000, 3, 2, 10_000), (8, 2, 2, 16), (48, 2, 4, 16), (8960, 7, 2, 640)],
)
def test_chunks_of_weights_give_threads_shares_alike(n_rows, turns, n_threads, chunk_rows) -> None:
    """2048 rows in 13 chunks would be 7 for one thread and 6 for the other."""
    assert lowering_of_linears.even_chunk_rows(n_rows, turns, n_threads) == chunk_rows
