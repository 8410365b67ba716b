"""The loops over all logits: machine code against NumPy, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.engine.sampling import Sampler
from edgellm.engine.sampling.candidates import Candidates, Scratch
from edgellm.engine.sampling.groups import CompiledGroupLoops, GroupLoops
from edgellm.kernels.isa import Isa
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.store import KernelStore
from edgellm.params import SamplingParams
from tests.kernels.compiled import before_a_wall
from tests.kernels.conftest import AVAILABLE

SIZES = (1, 63, 64, 65, 1000, 64 * 50)
EXP = 4e-6  # what `Vocabulary.exp` may be off by, of arguments that were rounded before
SENTINEL = np.float32(-7)


@pytest.fixture(params=AVAILABLE, ids=lambda isa: isa.name)
def loops(request: pytest.FixtureRequest) -> CompiledGroupLoops:
    isa: Isa = request.param
    return CompiledGroupLoops(KernelStore(isa))


def some_logits(n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    logits = np.minimum(rng.standard_normal(n) * 6, 19).astype(np.float32)
    logits[rng.random(n) < 0.2] = -np.inf
    logits[n // 2] = 20
    return before_a_wall(logits.view(np.uint8)).view(np.float32)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 5.0, 1e-19])
def test_weights(loops: CompiledGroupLoops, n: int, temperature: float) -> None:
    logits = some_logits(n)
    found, wanted = np.full(n + 32, SENTINEL), np.empty(n, np.float32)
    sums = loops.weights(logits, 20.0, temperature, found[16:-16])
    expected = GroupLoops().weights(logits, 20.0, temperature, wanted)
    np.testing.assert_allclose(found[16:-16], wanted, rtol=EXP, atol=1e-37)
    np.testing.assert_allclose(sums, expected, rtol=EXP)
    assert (found[:16] == SENTINEL).all() and (found[-16:] == SENTINEL).all()
    assert (found[16:-16][logits == -np.inf] == 0).all()  # what must not come is never drawn
    assert sums.dtype == np.float64 and len(sums) == -(-n // MAXIMA_GROUP)


@pytest.mark.parametrize("n", SIZES)
def test_largest(loops: CompiledGroupLoops, n: int) -> None:
    logits = some_logits(n)
    np.testing.assert_array_equal(loops.largest(logits), GroupLoops().largest(logits))
    nothing = np.full(n, -np.inf, np.float32)
    np.testing.assert_array_equal(loops.largest(nothing), GroupLoops().largest(nothing))


def test_logits_that_are_not_float32_in_a_row() -> None:
    loops = CompiledGroupLoops(KernelStore(AVAILABLE[0]))
    wide, apart = some_logits(200).astype(np.float64), some_logits(400)[::2]
    for logits in (wide, apart):
        np.testing.assert_array_equal(loops.largest(logits), GroupLoops().largest(logits))
        one, other = np.empty(200, np.float32), np.empty(200, np.float32)
        np.testing.assert_array_equal(loops.weights(logits, 20, 1, one), GroupLoops().weights(logits, 20, 1, other))


@pytest.mark.parametrize(
    "params",
    [{"temperature": 0.8}, {"top_p": 0.95}, {"mirostat": 2}, {"repeat_penalty": 1.3, "repeat_last_n": -1}],
    ids=str,
)
def test_choices_are_the_same(loops: CompiledGroupLoops, params: dict[str, Any]) -> None:
    """But for a draw that falls on the very border of two tokens."""
    settings = SamplingParams(**({"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 3} | params))
    logits = some_logits(5000)
    context = np.random.default_rng(1).integers(0, 5000, 2000).tolist()
    samplers = [Sampler(settings, loops=each) for each in (loops, GroupLoops())]
    for n in range(40):
        one, other = (sampler.choose(logits, context[: 1900 + n]) for sampler in samplers)
        assert one == other


def test_loops_are_those_of_the_scratch(loops: CompiledGroupLoops) -> None:
    logits = some_logits(1000)
    found, wanted = Candidates(logits, scratch=Scratch(loops)), Candidates(logits)
    assert found.total() == pytest.approx(wanted.total(), rel=EXP)
    np.testing.assert_array_equal(found.maxima, wanted.maxima)
