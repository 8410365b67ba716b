"""The loops over all logits: machine code against NumPy, on every instruction set."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from edgellm.engine.sampling import Sampler
from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.groups import ALL_BITS, CompiledGroupLoops, GroupLoops
from edgellm.kernels.isa import Isa
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.store import KernelStore
from edgellm.params import SamplingParams
from tests.kernels.compiled import before_a_wall
from tests.kernels.conftest import AVAILABLE

SIZES = (1, 63, 64, 65, 1000, 64 * 50)
EXP = 4e-6  # what `Vocabulary.exp` may be off by, of arguments that were rounded before


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


def some_words(n: int) -> np.ndarray:
    """A bit for each token; some words are full, some empty. Bits beyond the last token mean nothing."""
    rng = np.random.default_rng(n + 1)
    words = rng.integers(0, 2**64, -(-n // MAXIMA_GROUP) + 1, np.uint64)
    words[rng.random(len(words)) < 0.2] = 0
    words[rng.random(len(words)) < 0.2] = ALL_BITS
    words[n // 2 // MAXIMA_GROUP] |= np.uint64(1 << n // 2 % MAXIMA_GROUP)  # of the largest
    return words


def masked(logits: np.ndarray, words: np.ndarray | None) -> np.ndarray:
    """By definition: bit after bit."""
    bits = [words is None or int(words[i // MAXIMA_GROUP]) >> i % MAXIMA_GROUP & 1 for i in range(len(logits))]
    return np.where(bits, logits, np.float32(-np.inf))


def some_groups(n: int) -> np.ndarray:
    """In rising order, some twice, and the last."""
    n_groups = -(-n // MAXIMA_GROUP)
    return np.sort(np.append(np.random.default_rng(n).integers(0, n_groups, n_groups), n_groups - 1))


def parts(logits: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    return [logits[g * MAXIMA_GROUP : (g + 1) * MAXIMA_GROUP].astype(np.float64) for g in groups]


BOTH = pytest.mark.parametrize("is_masked", [False, True], ids=["all", "masked"])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 5.0, 1e-19, 1e300])
@BOTH
def test_weights(loops: CompiledGroupLoops, n: int, temperature: float, is_masked: bool) -> None:
    logits, words, groups = some_logits(n), some_words(n) if is_masked else None, some_groups(n)
    found = loops.weights(logits, words, groups, 20.0, temperature)
    np.testing.assert_allclose(found, GroupLoops().weights(logits, words, groups, 20.0, temperature), EXP, 1e-35)
    exponents = [(x[x > -np.inf] - 20) / temperature for x in parts(masked(logits, words), groups)]
    if temperature < 1e10:  # where float32 does not take its inverse for 0
        expected = [[np.exp(x).sum(), (np.exp(x) * x).sum()] for x in exponents]
        np.testing.assert_allclose(found, expected, 8e-6 * max(1, 20 / temperature) if temperature > 1e-9 else 0, 1e-35)
    assert found.dtype == np.float64 and found.shape == (len(groups), 2)
    nothing = np.full(n, -np.inf, np.float32)
    assert (loops.weights(nothing, words, groups, 20.0, temperature) == 0).all()  # what must not come is never drawn


@pytest.mark.parametrize("n", SIZES)
@BOTH
def test_largest(loops: CompiledGroupLoops, n: int, is_masked: bool) -> None:
    logits, words, groups = some_logits(n), some_words(n) if is_masked else None, some_groups(n)
    for each in (logits, np.full(n, -np.inf, np.float32)):
        expected = [x.max() for x in parts(masked(each, words), groups)]
        np.testing.assert_array_equal(loops.largest(each, words, groups), expected)
        np.testing.assert_array_equal(GroupLoops().largest(each, words, groups), expected)


@pytest.mark.parametrize("n", SIZES)
@BOTH
def test_spread(loops: CompiledGroupLoops, n: int, is_masked: bool) -> None:
    logits, words, groups = some_logits(n), some_words(n) if is_masked else None, some_groups(n)
    logits[logits > -np.inf] += 1000  # the spread is that about the mean
    numbers = np.concatenate(parts(masked(logits, words), groups))
    numbers = numbers[numbers > -np.inf] - 990
    for each in (loops, GroupLoops()):
        found = each.spread(logits, words, groups, 990.0)
        np.testing.assert_allclose(found, [len(numbers), numbers.sum(), np.square(numbers).sum()], rtol=1e-6)
        assert (each.spread(np.full(n, -np.inf, np.float32), words, groups, 0.0) == 0).all()


def test_spread_is_the_same_to_the_bit_on_all() -> None:
    logits, groups = some_logits(64 * 50), np.arange(50)
    first, *others = [CompiledGroupLoops(KernelStore(isa)).spread(logits, None, groups, 5.0) for isa in AVAILABLE]
    for each in others:
        np.testing.assert_array_equal(each, first)


@pytest.mark.skipif(sys.platform == "win32", reason="memory is mapped as POSIX systems do")
def test_on_arm() -> None:
    """In an emulator, where this machine is none."""
    pytest.importorskip("unicorn", reason="the emulator is not installed")
    from tests.kernels.arm import EmulatedStore

    loops, twin = CompiledGroupLoops(EmulatedStore()), GroupLoops()
    for n in (65, 1000):
        given = some_logits(n), some_words(n), some_groups(n)
        np.testing.assert_array_equal(loops.largest(*given), twin.largest(*given))
        np.testing.assert_allclose(loops.weights(*given, 20.0, 0.7), twin.weights(*given, 20.0, 0.7), EXP, 1e-35)
        np.testing.assert_allclose(loops.spread(*given, 5.0), twin.spread(*given, 5.0), rtol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1000.0, -30.0])
def test_variance(loops: CompiledGroupLoops, shift: float) -> None:
    for n in SIZES:
        for logits in (some_logits(n) + np.float32(shift), np.full(n, np.float32(shift + 0.1))):
            numbers = logits[logits > -np.inf].astype(np.float64)
            for each in (loops, GroupLoops()):
                count, variance = Candidates(logits, loops=each).spread()
                assert count == len(numbers) and variance == pytest.approx(numbers.var(), rel=2e-5, abs=1e-9)


def test_a_spread_beyond_float32() -> None:
    logits = np.array([3e38, -3e38, 1.0, -np.inf], np.float32)
    for loops in (CompiledGroupLoops(KernelStore(AVAILABLE[0])), GroupLoops()):
        numbers = np.tile(logits, 32)
        n, variance = Candidates(numbers, loops=loops).spread()
        assert n == 96 and variance == pytest.approx(numbers[numbers > -np.inf].astype(np.float64).var())


def test_logits_that_are_not_float32_in_a_row() -> None:
    loops = CompiledGroupLoops(KernelStore(AVAILABLE[0]))
    wide, apart, groups = some_logits(200).astype(np.float64), some_logits(400)[::2], np.arange(4)
    for logits in (wide, apart):
        found = loops.largest(logits, None, groups)
        np.testing.assert_array_equal(found, GroupLoops().largest(logits, None, groups))
        assert found.dtype == logits.dtype
        for work, *others in (["weights", 20.0, 1.0], ["spread", 5.0]):
            one, other = (getattr(each, work)(logits, None, groups, *others) for each in (loops, GroupLoops()))
            np.testing.assert_array_equal(one, other)


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


def test_candidates_go_through_all_by_their_loops(loops: CompiledGroupLoops) -> None:
    logits = some_logits(1000)
    found, wanted = Candidates(logits, loops=loops), Candidates(logits)
    assert found.total() == pytest.approx(wanted.total(), rel=EXP)
    assert found.entropy() == pytest.approx(wanted.entropy(), rel=EXP)
    assert found.spread() == pytest.approx(wanted.spread(), rel=EXP)
