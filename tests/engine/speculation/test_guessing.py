"""What the lookup finds in a text, and how many guesses are worth a pass."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.engine.request import Request
from edgellm.engine.speculation.lookup import LONGEST, PATIENCE, PAUSE, SIZES, Lookup, _continued
from edgellm.engine.speculation.pace import LEAST_GAIN, Pace


class Text(Request):
    most_guesses = 100


def guessed(lookup: Lookup, request: Request, most: int = 5) -> list[int]:
    found = lookup.guess([request], most, Pace()).get(request)
    return found.tokens if found else []


def test_what_came_last_time_is_guessed() -> None:
    lookup, text = Lookup(), Text([1, 2, 3, 4, 5, 6, 9, 9, 2, 3, 4])
    assert guessed(lookup, text, 3) == [5, 6, 9]
    text.tokens += [5]
    assert guessed(lookup, text, 1) == [6]
    text.tokens += [7]
    assert guessed(lookup, text) == []


def test_the_longer_agreement_is_followed() -> None:
    """The same three tokens came more often, but what stands before them tells where we are."""
    run = list(range(10, 20))
    text = Text([*run, 50, 99, 17, 18, 19, 60, 98, *run])
    assert guessed(Lookup(), text, 1) == [50]


def test_a_repetition_goes_on_with_itself() -> None:
    text = Text([1, 2, 3, 1, 2, 3, 1, 2, 3])
    assert guessed(Lookup(), text, 7) == [1, 2, 3, 1, 2, 3, 1]


def test_tokens_that_were_taken_back_are_not_guessed_from() -> None:
    lookup, text = Lookup(), Text([1, 2, 3, 4, 1, 2, 3])
    assert guessed(lookup, text, 1) == [4]
    text.tokens[3:] = [8, 1, 2, 3]
    guessed(lookup, text, 1)
    text.tokens += [8, 8, 8, 1, 2, 3]
    assert guessed(lookup, text, 1) == [8]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_a_guess_has_come_before(tokens: list[int], most: int) -> None:
    text, lookup = Text([]), Lookup()
    for token in tokens:
        text.tokens.append(token)
        found = lookup.guess([text], most, Pace()).get(text)
        if found is None:
            continue
        assert len(found.tokens) == len(found.chances) == most and all(0 < p < 1 for p in found.chances)
        run = tuple(text.tokens[-min(SIZES) :])
        places = [i for i in range(len(text.tokens) - len(run)) if tuple(text.tokens[i : i + len(run)]) == run]
        assert any(_continued(text.tokens, i + len(run), most) == found.tokens for i in places)


def test_chances_follow_what_comes() -> None:
    lookup = Lookup()
    text = Text(list(range(LONGEST + 8)))
    text.tokens += text.tokens[:4]
    first = lookup.guess([text], 1, Pace())[text].chances[0]
    for token in range(4, LONGEST):
        text.tokens.append(token)
        last = lookup.guess([text], 1, Pace())[text].chances[0]
    assert last > max(first, 0.9)
    for _ in range(20):
        text.tokens += [400, 401, 402, 500 + len(text.tokens)]
        text.tokens += [400, 401, 402]
        found = lookup.guess([text], 1, Pace())
    assert found[text].chances[0] < 0.2


def test_a_text_that_repeats_nothing_is_looked_at_less_often() -> None:
    """Not where all guesses are to be checked. What is copied later is found all the same, a little later."""
    firsts = {}
    for is_measured in (False, True):
        lookup, text, pace = Lookup(), Text(list(range(100))), Pace(is_measured)
        for token in range(100, 100 + PATIENCE):
            assert not lookup.guess([text], 5, pace)
            text.tokens.append(token)
        found = []
        for token in range(20, 20 + 3 * PAUSE):  # a copy of what stands there
            text.tokens.append(token)
            found.append(text in lookup.guess([text], 5, pace))
        firsts[is_measured] = found.index(True)
        assert all(found[firsts[is_measured] :])
    assert firsts[False] == min(SIZES) - 1
    assert firsts[False] < firsts[True] < min(SIZES) - 1 + PAUSE


def measured(seconds: dict[int, float]) -> Pace:
    pace = Pace()
    for rows, one in seconds.items():
        pace.note(rows, one)
    return pace


def test_so_many_guesses_as_bring_most_tokens_in_a_second() -> None:
    cheap = measured({1: 1.0, 2: 1.02, 4: 1.05, 16: 1.2})
    assert cheap.worth({"a": [0.9] * 15}, 1, 15) == {"a": 15}
    assert cheap.worth({"a": [0.01] * 15}, 1, 15) == {"a": 0}
    dear = measured({1: 1.0, 2: 2.0, 4: 4.0})
    assert dear.worth({"a": [0.9] * 3}, 1, 15) == {"a": 0}


def test_steps_in_the_cost_are_looked_across() -> None:
    """Two rows cost as much as eight, so that one guess never pays, and seven do."""
    steps = measured({1: 1.0, **{n: 1.9 for n in range(2, 9)}, 9: 4.0, 16: 4.0})
    assert steps.worth({"a": [0.9] * 15}, 1, 15) == {"a": 7}
    assert steps.worth({"a": [0.9]}, 1, 15) == {"a": 0}


def test_the_likelier_text_has_more_guesses() -> None:
    pace = measured({1: 1.0, 2: 1.05, 3: 1.1, 4: 1.6, 16: 6.0})
    counts = pace.worth({"copies": [0.99] * 8, "writes": [0.3] * 8}, 2, 14)
    assert counts["copies"] > counts["writes"]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=10), st.floats(0.01, 1), st.integers(1, 6))
def test_guessing_is_never_expected_to_be_slower(chances: list[float], slope: float, n_texts: int) -> None:
    pace = measured({n: 1 + slope * (n - 1) for n in range(1, 17)})
    n = pace.worth({"a": chances}, n_texts, 16 - n_texts)["a"]
    expected, chance = float(n_texts), 1.0
    for one in chances[:n]:
        chance *= one
        expected += chance
    if n:
        assert expected / pace.seconds(n_texts + n) > n_texts / pace.seconds(n_texts) * LEAST_GAIN
