"""Automata of patterns cut as the patterns do: run step by step here, and by the kernel on every instruction set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.kernels.isa import Isa
from edgellm.kernels.registry import find
from edgellm.kernels.store import KernelStore
from edgellm.kernels.word_records import AT_END_CLASS, CUT_WORDS, DEAD_STATE, NOT_MADE, START_STATE
from edgellm.text.compiled import automaton as module
from edgellm.text.compiled.automaton import Automaton, automata_of
from edgellm.text.compiled.patterns import NoAutomatonError, program_of
from edgellm.text.pretokenizers import PRETOKENIZERS, _cut_by, _in_ascii, _in_unicode
from tests.kernels.conftest import DISTINCT

from .. import oracles

RULES = {name: rule for name, rule in PRETOKENIZERS.items() if rule.automata is not None}
DIFFERENT = list({rule.automata: name for name, rule in RULES.items()}.values())

Cut = Callable[[Automaton, bytes, list[int]], list[int]]


def cut_in_python(automaton: Automaton, text: bytes, pieces: list[int]) -> list[int]:
    """Where the words end: the twin of the kernel."""
    ends: list[int] = []
    start = 0
    for end in pieces:
        chars = text[start:end].decode()
        offsets = [start, *(start + len(chars[: n + 1].encode()) for n in range(len(chars)))]
        at = gap = 0
        while at < len(chars):
            state, found, reading = START_STATE, at, at
            while True:
                char_class = AT_END_CLASS if reading == len(chars) else automaton.classes[ord(chars[reading])]
                if automaton.steps[state, char_class] == NOT_MADE:
                    automaton.make_step(state, char_class)
                step = int(automaton.steps[state, char_class])
                if step & 1:
                    found = reading
                state = step >> 1
                if state == DEAD_STATE or reading == len(chars):
                    break
                reading += 1
            if found == at:
                at += 1
                continue
            ends += [offsets[at], offsets[found]] if gap < at else [offsets[found]]
            at = gap = found
        if gap < len(chars):
            ends.append(end)
        start = end
    return ends


@pytest.fixture(params=[None, *DISTINCT], ids=lambda isa: isa.name if isa else "python")
def cut(request: pytest.FixtureRequest) -> Cut:
    isa: Isa | None = request.param
    if isa is None:
        return cut_in_python
    store = KernelStore(isa)
    store.load([find("cut_words")])

    def by_kernel(automaton: Automaton, text: bytes, pieces: list[int]) -> list[int]:
        kernel = store.function(find("cut_words"))
        array, until = np.frombuffer(text + b"\xff", np.uint8), np.array([*pieces, -1])
        progress, room = np.array([0, 0, 0, 0, -1, -1]), 3
        found: list[int] = []
        while progress[0] < len(pieces):
            ends = np.full(room + 1, -7)
            record = CUT_WORDS.filled(
                {
                    "text": array.ctypes.data,
                    "pieces": until.ctypes.data,
                    "n_pieces": len(pieces),
                    "classes": automaton.classes.ctypes.data,
                    "steps": automaton.steps.ctypes.data,
                    "n_classes": automaton.steps.shape[1],
                    "ends": ends.ctypes.data,
                    "room": room,
                    "progress": progress.ctypes.data,
                }
            )
            kernel(record.ctypes.data, 0, 0)
            n, state, char_class = progress[3:].tolist()
            assert (ends[n:] == -7).all()
            found += ends[:n].tolist()
            if state >= 0:
                automaton.make_step(state, char_class)
        return found

    return by_kernel


def words_of(cut: Cut, automata: tuple[Automaton, ...], text: str) -> list[str]:
    encoded = text.encode()
    ends = [len(encoded)]
    for automaton in automata:
        automaton.learn(text)
        ends = cut(automaton, encoded, ends)
    return [encoded[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("name", DIFFERENT)
def test_cuts_as_the_patterns(cut: Cut, name: str) -> None:
    rule = RULES[name]
    assert rule.automata is not None

    @settings(max_examples=15)
    @given(oracles.texts)
    def check(text: str) -> None:
        found = words_of(cut, rule.automata or (), text)
        assert found == _cut_by(rule._unicode_cuts, text) == rule.split(text)

    check()
    for text in oracles.CORPUS:
        assert words_of(cut, rule.automata, text) == rule.split(text)


def test_rules_without_automata() -> None:
    lacking = set(PRETOKENIZERS) - set(RULES)
    assert lacking == {"deepseek-llm", "afmoe", "jais-2", "superbpe", "tiny_aya", "cohere2moe"}


ATOMS = st.sampled_from(["a", "b", "c", "[ab]", "[^a]", r"\s", r"[\p{L}]", "(?i:b)", "(?!a)", r"(?![\s])", " "])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda ways: f"(?:{'|'.join(ways)})"),
        st.tuples(inner, st.sampled_from(["?", "{2}", "{1,2}"])).map(lambda it: f"(?:{it[0]}){it[1]}"),
        # What an endless repeat is of must take a character: engines differ in what they do otherwise.
        st.tuples(st.sampled_from(["a", "[ab]", r"\s", "c"]), st.sampled_from("*+")).map("".join),
    ),
    max_leaves=6,
)


@settings(max_examples=600)
@given(PATTERNS, st.text("abcAB é\n", max_size=12))
def test_any_pattern_finds_what_backtracking_finds(pattern: str, text: str) -> None:
    try:
        automaton = Automaton(pattern, _in_ascii, _in_unicode)
    except NoAutomatonError:
        return  # it matches nothing at all
    found = words_of(cut_in_python, (automaton,), text)
    assert found == [piece for piece in _in_unicode(f"({pattern})").split(text) if piece]


@pytest.mark.parametrize(
    "pattern", ["a(", "a)", "a{2", "a{x}", "[ab", "a+?", "a++", "^a", "a$", "a.", r"\ba", "(?=a)", "(?!ab)", "(?<=a)b",
                "a{999}", "(?:a{300}){300}", "\\", "*", r"\p{L}", "(?i:a"]
)  # fmt: skip
def test_what_has_no_automaton(pattern: str) -> None:
    with pytest.raises(NoAutomatonError):
        program_of(pattern)


@pytest.mark.parametrize("pattern", ["a*", "a?|b", "(?!a)", ""])
def test_a_pattern_that_matches_nothing_at_all(pattern: str) -> None:
    assert automata_of((pattern,), _in_ascii, _in_unicode) is None


def test_an_automaton_that_grows_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STATES", 4)
    automaton = Automaton("a{9}|a{8}b|c", _in_ascii, _in_unicode)
    assert words_of(cut_in_python, (automaton,), "cc") == ["c", "c"]
    with pytest.raises(NoAutomatonError, match="too many states"):
        words_of(cut_in_python, (automaton,), "aaaaaaaaa")
