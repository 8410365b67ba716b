"""What of an answer is shown, where it ends, and what is taken back: on tokens that the test makes up."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.engine.answer_text import MOST_TRIES, AnswerText
from edgellm.text import StreamDecoder


def begun(pieces: Sequence[bytes], **watched) -> AnswerText:
    return AnswerText(StreamDecoder(pieces.__getitem__), **watched)


def written(pieces: Sequence[bytes], ids: Sequence[int], **watched) -> tuple[list[str], AnswerText]:
    """The pieces that are shown, one after the other, when these tokens come."""
    text = begun(pieces, **watched)
    shown: list[str] = []
    for token_id in ids:
        assert text.push(token_id) is None
        if text.stop_string is not None:
            break
        shown += [item.text for item in text.shown()]
    last, rest = text.finish()
    return [*shown, *(item.text for item in last), rest], text


def first_to_end(whole: str, strings: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first of the strings that is complete, the longest of those that end there."""
    for end in range(1, len(whole) + 1):
        if ended := [string for string in strings if whole[:end].endswith(string)]:
            longest = max(ended, key=len)
            return whole[: end - len(longest)], longest
    return whole, None


@settings(max_examples=400)
@given(
    st.text("abé\U0001f98a", max_size=30),
    st.lists(st.text("abé\U0001f98a", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_a_stop_string_ends_the_text_wherever_tokens_are_cut(whole, stop, data) -> None:
    encoded = whole.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))))
    tokens = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    shown, text = written(tokens, range(len(tokens)), stop=stop)
    assert ("".join(shown), text.stop_string) == first_to_end(whole, stop)


def test_what_may_be_a_stop_string_waits_and_comes_when_it_is_none() -> None:
    pieces = [b"one E", b"N", b"D", b"S", b" two EN", b"END ", b"x"]
    shown, text = written(pieces, [0, 1, 3, 4], stop=["END"])
    assert shown == ["one ", "", "ENS", " two ", "EN"] and text.stop_string is None
    shown, text = written(pieces, [4, 5, 6], stop=["END"])
    assert shown == [" two ", "EN", ""] and text.stop_string == "END"


def test_every_token_has_its_text_once() -> None:
    pieces = [b"a", b"b", b"c"]
    text = begun(pieces, stop=["abd"], banned=["abe"])
    text.push(0)
    text.push(1)
    assert list(text.shown()) == []
    text.push(2)
    assert [(item.token_id, item.text) for item in text.shown()] == [(0, "a"), (1, "b"), (2, "c")]


def test_of_strings_that_end_together_the_longest_counts() -> None:
    assert written([b"xabc"], [0], stop=["bc", "abc", "c"])[1].stop_string == "abc"
    assert written([b"xabc"], [0], stop=["abc", "b"])[0] == ["xa", ""]


def test_half_a_character_at_the_end() -> None:
    assert written([b"ok\xc3"], [0], stop=["x"])[0] == ["ok", "\ufffd"]
    assert written([b"ok\xc3"], [0], banned=["\ufffd"])[0] == ["ok", ""]  # it would make a banned string


def test_tokens_are_taken_back_to_where_the_banned_string_began() -> None:
    pieces = [b"the ", b"un", b"for", b"tunate", b"fortunately ", b"!"]
    text = begun(pieces, banned=["unfortunate"])
    text.push(0, sampler="s0")
    assert [item.text for item in text.shown()] == ["the "]
    text.push(1, sampler="s1")
    text.push(2, sampler="s2")
    assert list(text.shown()) == []
    back = text.push(3, sampler="s3")
    assert back is not None and (back.n_tokens, back.sampler) == (3, "s1") and text.forbidden == {1}
    text.push(5, sampler="s4")
    assert [item.text for item in text.shown()] == ["!"] and not text.forbidden


def test_a_token_that_is_all_of_a_banned_string_is_refused_at_once() -> None:
    text = begun([b"a bad word"], banned=["bad"])
    back = text.push(0, sampler="before")
    assert back is not None and (back.n_tokens, back.sampler) == (1, "before") and text.forbidden == {0}


def test_where_nothing_else_may_come_a_banned_string_is_cut_short_at_its_last_token() -> None:
    text = begun([b"[", b"{", b"[{", b"]"], banned=["[{"])
    text.push(0, sampler="s0")
    text.push(1)
    text.push(2)  # all of it
    assert text.forbidden == {0, 2} and text.allow_beginnings() and text.forbidden == {2}
    text.push(0, sampler="s0")
    back = text.push(1, sampler="s1")
    assert back is not None and (back.n_tokens, back.sampler) == (1, "s1") and text.forbidden == {1}
    assert not text.allow_beginnings() and text.forbidden == {1}
    text.push(3)
    assert "".join(item.text for item in text.shown()) == "[]"


def test_a_stop_string_before_a_banned_one_ends_the_text() -> None:
    shown, text = written([b"a STOP bad"], [0], stop=["STOP"], banned=["bad"])
    assert ("".join(shown), text.stop_string) == ("a ", "STOP")
    shown, text = written([b"so bad"], [0], stop=["bad"], banned=["so bad"])
    assert ("".join(shown), text.stop_string) == ("so ", "bad")


def answered(
    pieces: list[bytes], banned: list[str], stop: list[str], wishes: list[int], n_tokens: int
) -> tuple[str, int]:
    """An answer by a made-up model that wants certain tokens, in an order that depends on the place."""
    text = begun(pieces, stop=stop, banned=banned)
    tokens: list[int] = []
    shown, n_steps = "", 0
    while len(tokens) < n_tokens and text.stop_string is None:
        n_steps += 1
        assert n_steps < 2000 * n_tokens
        first = wishes[len(tokens) % len(wishes)]
        order = [(first + i) % len(pieces) for i in range(len(pieces))]
        allowed = [token_id for token_id in order if token_id not in text.forbidden]
        if not allowed:
            break
        back = text.push(allowed[0])
        if back is None:
            tokens.append(allowed[0])
            if text.stop_string is None:
                shown += "".join(item.text for item in text.shown())
        elif back.n_tokens > 1:
            del tokens[len(tokens) - back.n_tokens + 1 :]
        assert not any(string in shown for string in banned)
    last, rest = text.finish()
    return shown + "".join(item.text for item in last) + rest, n_steps


PIECES = [b"a", b"b", b"c", b"ab", b"ba", b"aa", b" ", b"\xc3", b"\xa9", "é".encode(), b"abc"]


@settings(max_examples=400)
@given(
    st.lists(st.text("abcé \ufffd", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("abcé ", min_size=1, max_size=3), max_size=2),
    st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=8),
)
def test_a_banned_string_is_never_in_an_answer_and_it_always_ends(banned, stop, wishes) -> None:
    answer, _ = answered(PIECES, banned, stop, wishes, 30)
    assert not any(string in answer for string in (*banned, *stop))


def test_a_model_that_wants_nothing_else_is_not_tried_for_ever() -> None:
    pieces = [b"a", *[b"a"] * 40, b"b"]
    answer, n_steps = answered(pieces, ["aaaa"], [], [0], 40)
    assert "aaaa" not in answer and len(answer) == 40 and n_steps < 40 * 4 * MOST_TRIES * 42
