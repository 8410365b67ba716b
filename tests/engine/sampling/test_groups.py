"""The loops over all logits: machine code against NumPy, on every instruction set."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest

from edgellm.engine.sampling import Sampler
from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.compiled_groups import CompiledGroupLoops
from edgellm.engine.sampling.groups import (
    ALL_BITS,
    Filter,
    GroupLoops,
    Penalty,
    Row,
    entropy_of,
    temperature_of,
)
from edgellm.graph.team import KERNELS, Team
from edgellm.kernels.isa import Isa
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import (
    AIMED,
    EVENNESS,
    GROUPS_TOGETHER,
    MOST_LIKELY,
    PROBABLE,
    REACHING,
    SIGMAS,
    TYPICAL,
    WITHIN,
)
from edgellm.kernels.store import KernelStore
from edgellm.params import SamplingParams
from tests.kernels.compiled import before_a_wall
from tests.kernels.conftest import AVAILABLE, DISTINCT

SIZES = (1, 63, 64, 65, 1000, 64 * 50)
EXP = 4e-6  # what `Vocabulary.exp` may be off by, of arguments that were rounded before


@pytest.fixture(params=DISTINCT, ids=lambda isa: isa.name)
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


def a_row(n: int, is_masked: bool) -> Row:
    logits, words = some_logits(n), some_words(n) if is_masked else None
    return Row(logits, words, GroupLoops().largest(logits, words, None))


def parts(logits: np.ndarray) -> list[np.ndarray]:
    return [logits[at : at + MAXIMA_GROUP].astype(np.float64) for at in range(0, len(logits), MAXIMA_GROUP)]


BOTH = pytest.mark.parametrize("is_masked", [False, True], ids=["all", "masked"])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 5.0, 1e-19, 1e300])
@BOTH
def test_weights(loops: CompiledGroupLoops, n: int, temperature: float, is_masked: bool) -> None:
    row = a_row(n, is_masked)
    found, other = loops.weights(row, temperature), GroupLoops().weights(row, temperature)
    np.testing.assert_allclose(found, other, EXP, 1e-35)
    numbers = masked(*row[:2]).astype(np.float64)
    if temperature < 1e10:  # where float32 does not take its inverse for 0
        exponents = (numbers[numbers > -np.inf] - 20) / temperature
        tolerance = 8e-6 * max(1, 20 / temperature) if temperature > 1e-9 else 0
        assert found.total == pytest.approx(np.exp(exponents).sum(), tolerance, 1e-35)
        assert found.products == pytest.approx((np.exp(exponents) * exponents).sum(), tolerance, 1e-35)
    assert found.n == (numbers > -np.inf).sum()


@pytest.mark.parametrize("n", SIZES)
@BOTH
def test_draw_of_all(loops: CompiledGroupLoops, n: int, is_masked: bool) -> None:
    """Where weights side by side say, and never a token that must not come. Also by entropy."""
    row = a_row(n, is_masked)
    numbers = masked(*row[:2]).astype(np.float64)
    for last in (None, Filter(EVENNESS, 1.5, 4.0, 0.5, 1.0)):
        temperature, filters = 3.0, [last] if last else []
        if last:
            entropy, count = entropy_of(numbers, last.temperature)
            temperature *= temperature_of(last, entropy, count)
            assert count == 1 or 1.5 < temperature < 3
        exact = np.exp((numbers - 20) / temperature)
        for number in (0.0, 0.1, 0.37, 0.5, 0.93, 1 - 2**-53):
            one, other = (x.drawn(row, filters, 3.0, number) for x in (loops, GroupLoops()))
            assert one.token_id == other.token_id == one.position and numbers[one.token_id] > -np.inf
            assert one.share == pytest.approx(exact[one.token_id] / exact.sum(), rel=1e-5)
            assert exact[: one.token_id].sum() <= (number + 1e-6) * exact.sum()
            assert exact[: one.token_id + 1].sum() >= (number - 1e-6) * exact.sum()
            assert not one.is_only and not other.is_only
        nothing = Row(np.full(n, -np.inf, np.float32), row.words, np.full(len(row.maxima), -np.inf, np.float32))
        assert loops.drawn(nothing, filters, 3.0, 0.5) is GroupLoops().drawn(nothing, filters, 3.0, 0.5) is None


@pytest.mark.parametrize("n", SIZES)
@BOTH
def test_largest(loops: CompiledGroupLoops, n: int, is_masked: bool) -> None:
    logits, words = some_logits(n), some_words(n) if is_masked else None
    for each in (logits, np.full(n, -np.inf, np.float32)):
        expected = [x.max() for x in parts(masked(each, words))]
        known = GroupLoops().largest(each, None, None)
        for found in (loops, GroupLoops()):
            np.testing.assert_array_equal(found.largest(each, words, None), expected)
            np.testing.assert_array_equal(found.largest(each, words, known), expected)


@pytest.mark.parametrize("n", SIZES)
@BOTH
def test_spread(loops: CompiledGroupLoops, n: int, is_masked: bool) -> None:
    logits, words = some_logits(n), some_words(n) if is_masked else None
    logits[logits > -np.inf] += 1000  # the spread is that about the mean
    row = Row(logits, words, GroupLoops().largest(logits, words, None))
    numbers = masked(logits, words).astype(np.float64)
    numbers = numbers[numbers > -np.inf]
    for each in (loops, GroupLoops()):
        np.testing.assert_allclose(each.spread(row), [len(numbers), numbers.var()], rtol=2e-5, atol=1e-9)


FILTERS = [
    [Filter(MOST_LIKELY, 1, 1.0)],
    [Filter(MOST_LIKELY, 40, 1.0), Filter(REACHING, 0.8, 3.0), Filter(WITHIN, 3.0, 1.0)],
    [Filter(MOST_LIKELY, 700, 1.0)],
    [Filter(REACHING, 0.0, 1.0)],
    [Filter(REACHING, 0.9, 3.0), Filter(MOST_LIKELY, 20, 1.0)],
    [Filter(REACHING, 0.9, 30.0), Filter(TYPICAL, 0.5, 1.0), Filter(WITHIN, 2.0, 1.0)],
    [Filter(WITHIN, 6.0, 1.0), Filter(REACHING, 0.7, 2.0), Filter(MOST_LIKELY, 9, 1.0)],
    [Filter(WITHIN, math.inf, 1.0), Filter(TYPICAL, 0.6, 2.0)],
    [Filter(WITHIN, -1.0, 1.0)],
    [Filter(TYPICAL, 0.0, 1.0)],
    [Filter(TYPICAL, 0.7, 3.0), Filter(WITHIN, 1.0, 1.0)],
    [Filter(WITHIN, 2.0, 4.0), Filter(WITHIN, 2.0, 2.0)],
    [Filter(PROBABLE, 0.01, 4.0), Filter(PROBABLE, 0.05, 4.0)],
    [Filter(PROBABLE, 1.0, 30.0)],
    [Filter(PROBABLE, 0.0, 1.0), Filter(SIGMAS, 1.5, 1.0)],
    [Filter(SIGMAS, 1.0, 3.0), Filter(PROBABLE, 0.03, 8.0)],
]
LAST = [Filter(EVENNESS, 0.5, 2.0, 0.3, 3.0), Filter(EVENNESS, 0.0, 2.0, 0.3, 3.0), Filter(AIMED, 0.2, 1.5)]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: " ".join(f"{x.kind}:{x.value}" for x in filters))
@BOTH
def test_filters(loops: CompiledGroupLoops, n: int, filters: list[Filter], is_masked: bool) -> None:
    """By kernels as in NumPy, which is held against the definitions elsewhere."""
    row, twin = a_row(n, is_masked), GroupLoops()
    one, other = loops.kept(row, filters), twin.kept(row, filters)
    for found, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len(one[0])
    nothing = Row(np.full(n, -np.inf, np.float32), None, np.full(len(row.maxima), -np.inf, np.float32))
    for last in ([], *([each] for each in LAST)):
        for number in (0.0, 0.4, 0.99):
            drawn, expected = (x.drawn(row, [*filters, *last], 0.7, number) for x in (loops, twin))
            assert drawn[:2] == expected[:2] and one[0][drawn.position] == drawn.token_id
            assert drawn.share == pytest.approx(expected.share, rel=1e-5)
            assert drawn.is_only == expected.is_only == (len(one[0]) == 1)
        assert loops.drawn(nothing, [*filters, *last], 0.7, 0.5) is None
    assert not len(loops.kept(nothing, filters)[0])


def test_the_last_filter_by_definition(loops: CompiledGroupLoops) -> None:
    """What is drawn how often."""
    row, keep, temperature = a_row(1000, False), Filter(WITHIN, 8.0, 1.0), 2.0
    tokens, logits = GroupLoops().kept(row, [keep])
    p = np.exp((logits.astype(np.float64) - 20) / temperature)
    p /= p.sum()
    evenness = -(p * np.log(p)).sum() / np.log(len(p))
    cooled = np.exp((logits.astype(np.float64) - 20) / temperature / (0.5 + evenness**2))
    d = np.abs(p - 0.1) / 0.3
    aimed = np.exp(5 - 10 * d**2 / (1 + d))
    numbers = (np.arange(500) + 0.5) / 500
    for last, weights, shares in (
        (Filter(EVENNESS, 2.0, temperature, 0.5, 1.5), cooled, cooled / cooled.sum()),
        (Filter(AIMED, 0.1, temperature), aimed, p),
    ):
        expected = (weights.cumsum() / weights.sum()).searchsorted(numbers)
        for each in (loops, GroupLoops()):
            found = [each.drawn(row, [keep, last], temperature, number) for number in numbers]
            assert [x.position for x in found] == expected.tolist()
            np.testing.assert_allclose([x.share for x in found], shares[expected], rtol=1e-5)
        assert len(set(expected.tolist())) > 5 and tokens[found[-1].position] == found[-1].token_id


def test_sums_of_weights_that_are_there_are_those_of_the_row(loops: CompiledGroupLoops) -> None:
    """Whatever was looked for, or changed, since they were made."""
    row, twin = a_row(1000, False), GroupLoops()
    for between in (
        lambda: None,
        lambda: loops.kept(row, [Filter(WITHIN, 1.0, 1.0)]),
        lambda: loops.kept(row, [Filter(REACHING, 0.5, 9.0)]),
        lambda: loops.spread(row),
        lambda: loops.drawn(row, LAST[:1], 1.0, 0.5),
        lambda: loops.change(row, np.array([500]), np.array([30.0]), 1.0, 1.0),
    ):
        for filters in ([], [Filter(REACHING, 0.9, 3.0)], [Filter(TYPICAL, 0.9, 3.0)], LAST[:1]):
            loops.weights(row, 3.0, with_products=False)
            between()
            found, expected = (each.drawn(row, filters, 3.0, 0.7) for each in (loops, twin))
            assert found is not None and expected is not None
            assert found.token_id == expected.token_id and found.share == pytest.approx(expected.share, rel=1e-5)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("repeat", "temperature"), [(1.0, 1.0), (1.3, 1.0), (0.5, 0.7)])
@BOTH
def test_other_logits(loops: CompiledGroupLoops, n: int, repeat: float, temperature: float, is_masked: bool) -> None:
    """Of some tokens, and of those that are among some ids; what was there is told, and maxima stay true."""
    rng = np.random.default_rng(3)
    positions = np.append(rng.permutation(n)[:20], n)  # of which there is none
    lost = rng.standard_normal(len(positions)) * 9
    lost[0] = np.inf
    ids, penalty = rng.integers(-2, n + 2, 60), Penalty(0.5, 0.3, repeat)
    for work, *given in (("change", positions, lost, repeat), ("penalize", ids, penalty)):
        rows = [a_row(n, is_masked) for _ in range(2)]
        before = rows[0].logits.copy()
        one, other = (
            getattr(x, work)(row, *given, temperature) for x, row in zip((loops, GroupLoops()), rows, strict=True)
        )
        if work == "change":
            assert one[0].tolist() == other[0].tolist() == positions[:-1].tolist()
            np.testing.assert_array_equal(other[1], before[one[0]])
        else:
            assert sorted(one[0]) == other[0].tolist() == sorted({i for i in ids.tolist() if 0 <= i < n})
        np.testing.assert_array_equal(one[1], before[one[0]])
        np.testing.assert_array_equal(rows[0].logits, rows[1].logits)
        for row in rows:
            np.testing.assert_array_equal(row.maxima, [x.max() for x in parts(masked(*row[:2]))])


def test_repeated(loops: CompiledGroupLoops) -> None:
    rng = np.random.default_rng(4)
    for n, limit, allowed in ((1, 1, 1), (50, 3, 2), (300, 300, 1), (300, 5, 6)):
        ids = rng.integers(0, 3, n)
        one, other = (dict(zip(*x.repeated(ids, limit, allowed), strict=True)) for x in (loops, GroupLoops()))
        assert one == other and all(allowed <= length <= limit for length in one.values())


def test_threads_change_nothing() -> None:
    """To the bit, however many share a pass."""
    store, rng = KernelStore(AVAILABLE[0]), np.random.default_rng(5)
    store.load(KERNELS)
    logits = rng.standard_normal(MAXIMA_GROUP * GROUPS_TOGETHER * 6 + 100).astype(np.float32)
    words = some_words(len(logits))[: -(-len(logits) // MAXIMA_GROUP)]
    alone, teams = CompiledGroupLoops(store), [Team(store, n, 4) for n in (1, 2, 3)]
    row = Row(logits, words, alone.largest(logits, words, None))
    for team in teams:
        shared = CompiledGroupLoops(store, team)
        for _ in range(20):
            np.testing.assert_array_equal(shared.largest(logits, words, None), row.maxima)
            assert shared.spread(row) == alone.spread(row) and shared.weights(row, 0.7) == alone.weights(row, 0.7)
            for filters in ([], LAST[:1], *FILTERS[:6], *FILTERS[-3:]):
                assert shared.drawn(row, filters, 0.7, 0.6) == alone.drawn(row, filters, 0.7, 0.6)
        team.close()


def test_spread_is_the_same_to_the_bit_on_all() -> None:
    row = a_row(64 * 50, False)
    first, *others = [CompiledGroupLoops(KernelStore(isa)).spread(row) for isa in AVAILABLE]
    assert all(each == first for each in others)


@pytest.mark.skipif(sys.platform == "win32", reason="memory is mapped as POSIX systems do")
def test_on_arm() -> None:
    """In an emulator, where this machine is none."""
    pytest.importorskip("unicorn", reason="the emulator is not installed")
    from tests.kernels.arm import EmulatedStore

    loops = CompiledGroupLoops(EmulatedStore())
    test_largest(loops, 65, True)
    test_weights(loops, 1000, 0.3, True)
    test_spread(loops, 1000, True)
    test_draw_of_all(loops, 65, True)
    test_the_last_filter_by_definition(loops)
    test_filters(loops, 200, FILTERS[1], True)
    test_filters(loops, 200, FILTERS[5], False)
    test_other_logits(loops, 65, 1.3, 1.0, True)


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
        found = Candidates(numbers, loops=loops)
        found.keep_sigmas(1.3)  # 3e38 down to about -2e37
        assert found.ids is not None and (found.ids % 4).tolist() == [0, 2] * 32


@pytest.mark.parametrize(
    "params", [{"dynatemp_range": 0.5}, {"temperature": 1, "adaptive_target": 0.3}, {"temperature": 0.9}], ids=str
)
def test_no_number_is_drawn_where_there_is_no_choice(loops: CompiledGroupLoops, params: dict[str, Any]) -> None:
    """But for filters that are applied together with the draw."""
    settings = SamplingParams(seed=1, min_p=1.0, **params)
    for each in (loops, GroupLoops()):
        sampler, first, second = Sampler(settings, loops=each), *[Sampler(settings)._dice for _ in range(2)]
        assert sampler.choose(some_logits(200), []) == 100
        second.roll()
        expected = second if params == {"temperature": 0.9} else first
        assert sampler._dice.roll() == expected.roll()


def test_logits_that_are_not_float32_in_a_row() -> None:
    loops = CompiledGroupLoops(KernelStore(AVAILABLE[0]))
    wide, apart = some_logits(200).astype(np.float64), some_logits(400)[::2]
    for logits in (wide, apart):
        maxima = loops.largest(logits, None, None)
        np.testing.assert_array_equal(maxima, GroupLoops().largest(logits, None, None))
        assert maxima.dtype == logits.dtype
        row = Row(logits, None, maxima)
        assert loops.weights(row, 1.0) == GroupLoops().weights(row, 1.0) and loops.spread(row) == GroupLoops().spread(
            row
        )
        assert loops.drawn(row, [], 1.0, 0.5) == GroupLoops().drawn(row, [], 1.0, 0.5)
        for filters in FILTERS:
            found, expected = (each.kept(row, filters) for each in (loops, GroupLoops()))
            np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.8},
        {"top_p": 0.95},
        {"typical_p": 0.8},
        {"top_k": 30, "min_p": 0.1},
        {"dry_multiplier": 1.0},
        {"mirostat": 2},
        {"dynatemp_range": 0.5},
        {"top_k": 20, "dynatemp_range": 0.9, "dynatemp_exponent": 1.5},
        {"min_p": 0.02, "adaptive_target": 0.3},
        {"top_n_sigma": 1.5, "top_p": 0.9},
        {"repeat_penalty": 1.3, "repeat_last_n": -1},
    ],
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
    assert found.spread() == pytest.approx(wanted.spread(), rel=EXP)
