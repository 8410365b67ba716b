"""The compiled search for scales against its NumPy twin: the same bits on every instruction set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

from edgellm.errors import FormatError, KernelError
from edgellm.kernels.fit import CompiledFit
from edgellm.kernels.isa import Isa
from edgellm.kernels.records import FIT, fit_scratch_bytes
from edgellm.kernels.registry import find
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.fit import fit
from edgellm.quants.grids import Fitted

from .compiled import Compiled, before_a_wall
from .conftest import DISTINCT, is_usual, thorough_unless

FITTED = [kind for kind in FORMATS.values() if kind.grid is not None]
N_BLOCKS = 21  # no multiple of any register's lanes


def is_usual_on(one: Isa, kind: BlockFormat) -> bool:
    """Common ones, and one whose numbers are looked up in a table."""
    return is_usual(one, kind) or kind.name == "IQ4_NL"


def on_all_of(kinds: list[BlockFormat]) -> pytest.MarkDecorator:
    pairs = [thorough_unless(is_usual_on(one, kind), one, kind) for one in DISTINCT for kind in kinds]
    return pytest.mark.parametrize(("compiled", "kind"), pairs, ids=lambda x: x.name, indirect=["compiled"])


def weights(kind: BlockFormat, name: str) -> np.ndarray:
    """float32 [N_BLOCKS, block_size] of a kind that a search could stumble over."""
    rng, shape = np.random.default_rng(3), (N_BLOCKS, kind.block_size)
    normal = rng.standard_normal(shape)
    sparse = np.where(rng.random(shape) < 0.03, normal, 0)
    one_is_huge = normal.copy()
    one_is_huge[:, 7] = 3e4
    sizes = np.exp2(rng.integers(-30, 12, (N_BLOCKS, 1)).astype(float))
    made = {
        "normal": normal * 0.02,
        "heavy tails": rng.standard_t(2, shape),
        "zeros": np.zeros(shape),
        "constant": np.broadcast_to(np.linspace(-2, 2, N_BLOCKS)[:, None], shape),
        "one is huge": one_is_huge,
        "denormal": normal * 1e-41,
        "near the smallest float16": normal * 3e-6,
        "ties": rng.integers(-9, 9, shape) / 2,
        "all positive": np.abs(normal) + 0.5,
        "sparse": sparse,
        "blocks of all sizes": normal * sizes,
        "already quantized": kind.dequantize(kind.quantize(normal.astype(np.float32))),
    }
    return np.ascontiguousarray(made[name], np.float32)


KINDS = ("normal", "heavy tails", "zeros", "constant", "one is huge", "denormal", "near the smallest float16", "ties",
         "all positive", "sparse", "blocks of all sizes", "already quantized")  # fmt: skip


def importances(shape: tuple[int, ...]) -> dict[str, np.ndarray | None]:
    rng = np.random.default_rng(4)
    some_zero = np.where(rng.random(shape) < 0.5, 0, rng.random(shape))
    some_zero[: len(some_zero) // 4] = 0
    return {
        "none": None,
        "of many sizes": np.exp(3 * rng.standard_normal(shape)).astype(np.float32),
        "some zero": some_zero.astype(np.float32),
    }


@cache
def twin(kind: BlockFormat, name: str, counts: str) -> Fitted:
    """What NumPy finds: the same for every instruction set."""
    x = weights(kind, name)
    return fit(kind, x, importances(x.shape)[counts])


def walled(x: np.ndarray) -> np.ndarray:
    """float32 behind which nothing can be read."""
    return before_a_wall(x.view(np.uint8)).view(np.float32)


def assert_same_bits(found: Fitted, expected: Fitted) -> None:
    for name, a, b in zip(Fitted._fields, found, expected, strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
        if a.dtype == np.float32:
            np.testing.assert_array_equal(np.signbit(a), np.signbit(b), err_msg=name)


@on_all_of(FITTED)
def test_every_fit_has_the_bits_of_its_twin(compiled: Compiled, kind: BlockFormat) -> None:
    search = CompiledFit(compiled.store)
    for name in KINDS:
        x = weights(kind, name)
        for counts, importance in importances(x.shape).items():
            found = search(kind, walled(x), None if importance is None else walled(importance))
            assert_same_bits(found, twin(kind, name, counts))


@pytest.mark.parametrize("n", [0, 1, 16, 33])
def test_any_number_of_blocks(compiled: Compiled, n: int) -> None:
    kind = FORMATS["Q4_K"]
    x = np.random.default_rng(5).standard_normal((n, 256), np.float32)
    assert_same_bits(CompiledFit(compiled.store)(kind, x), fit(kind, x))


@on_all_of([FORMATS["Q4_1"], FORMATS["IQ4_NL"], FORMATS["Q5_1"], FORMATS["IQ4_XS"]])
def test_chunks_write_their_own_blocks_only(compiled: Compiled, kind: BlockFormat) -> None:
    x, grid = weights(kind, "normal"), kind.grid
    kernel = find("fit", kind)
    compiled.store.load([kernel])
    shapes = {"d": (4,), "m": (4,), "scale": (grid.n_groups,), "minimum": (grid.n_groups,), "q": (kind.block_size,)}
    bytes_of = {name: np.full((N_BLOCKS, *shape), 99, np.uint8) for name, shape in shapes.items()}
    thread, scratch_bytes = 1, fit_scratch_bytes(compiled.store.isa.lanes, kind.block_size, grid.n_groups)
    scratch = np.full((3, scratch_bytes), 99, np.uint8)
    record = FIT.new()
    for name, array in {"x": x, "targets": grid.targets, "scratch": scratch, **bytes_of}.items():
        record[name] = array.ctypes.data
    record["n_blocks"], record["chunk_blocks"], record["n_targets"] = N_BLOCKS, 8, len(grid.targets)
    record["scratch_bytes"] = scratch_bytes
    for chunk in (1, 2):  # blocks 8 to 20
        compiled.store.function(kernel)(record.ctypes.data, chunk, thread)
    expected = fit(kind, x)
    for name, array in bytes_of.items():
        assert (array[:8] == 99).all(), name
        wanted = getattr(expected, name)[8:]
        np.testing.assert_array_equal(array[8:].reshape(13, -1), wanted.view(np.uint8).reshape(13, -1), err_msg=name)
    assert (scratch[[0, 2]] == 99).all()


@on_all_of(FITTED)
def test_whole_rows_quantize_alike(compiled: Compiled, kind: BlockFormat) -> None:
    rng = np.random.default_rng(6)
    x, importance = rng.standard_normal((5, 1024), np.float32), rng.random(1024)
    search = CompiledFit(compiled.store)
    for counts in (None, importance):
        np.testing.assert_array_equal(kind.quantize(x, counts, search), kind.quantize(x, counts))


def test_several_threads_at_once(compiled: Compiled) -> None:
    kind, search = FORMATS["Q6_K"], CompiledFit(compiled.store)
    parts = [np.random.default_rng(i).standard_normal((64, 256), np.float32) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: search(kind, x), parts))
    for x, one in zip(parts, found, strict=True):
        assert_same_bits(one, fit(kind, x))


def test_weights_beyond_float16_scales_are_refused(compiled: Compiled) -> None:
    x = np.zeros((1, 256), np.float32)
    x[0, 5], x[0, 6] = 3e38, -3e38
    for kind in (kind for kind in FITTED if is_usual_on(compiled.store.isa, kind)):
        with pytest.raises(FormatError, match="too large"):
            kind.quantize(x, fit=CompiledFit(compiled.store))


def test_formats_without_a_search_have_no_kernel() -> None:
    for name in ("F16", "Q8_0"):
        with pytest.raises(KernelError, match="no kernel 'fit'"):
            find("fit", FORMATS[name])
