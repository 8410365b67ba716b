"""Each character of a text knows whose it is, whatever a template does with it.

Here the template writes small letters and the chat capitals or digits, so the right answer can be read off the result.
"""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from edgellm.text import provenance
from edgellm.text.provenance import METHODS, Text, own_of, traced, written

OWN, CHAT = "abc\n ", "ABC12\t"
pieces = st.lists(st.one_of(st.text(OWN, max_size=4).map(written), st.text(CHAT, max_size=4)), max_size=6)
texts = pieces.map(lambda parts: provenance.join("", parts))
shorts = st.one_of(st.text(OWN, min_size=1, max_size=2).map(written), st.text(CHAT, min_size=1, max_size=2))


def right(text: str) -> bool:
    """Whether each character has its own provenance. What was not followed is the chat's, and so all zeros."""
    return own_of(text) == bytes(char in OWN for char in text)


def check(result: object, expected: object) -> None:
    assert result == expected
    for text in [result] if isinstance(result, str) else result:
        assert right(text)


@given(texts)
def test_texts_are_put_together_and_taken_apart(text):
    assert right(text) and (type(text) is str or 1 in text.own)
    check(list(text), list(str(text)))
    for key in (0, -1, slice(1, None), slice(None, None, -1), slice(None, None, 2), slice(-3, 5)):
        if isinstance(key, slice) or text:
            check(text[key], str(text)[key])
    check(provenance.repeat(text, 3), str(text) * 3)
    check(provenance.add(text, "A1"), str(text) + "A1")
    check(provenance.add("A1", text), "A1" + str(text))


@given(texts, shorts, st.integers(-1, 3))
def test_cutting(text, sep, most):
    plain = str(text)
    for name in ("strip", "lstrip", "rstrip"):
        check(METHODS[name](text), getattr(plain, name)())
        check(METHODS[name](text, sep), getattr(plain, name)(sep))
    for name in ("split", "rsplit"):
        check(METHODS[name](text, None, most), getattr(plain, name)(None, most))
        check(METHODS[name](text, sep, most), getattr(plain, name)(sep, most))
    for name in ("partition", "rpartition", "removeprefix", "removesuffix"):
        check(METHODS[name](text, sep), getattr(plain, name)(sep))
    for keepends in (False, True):
        check(METHODS["splitlines"](text, keepends), plain.splitlines(keepends))


@given(texts, shorts, pieces, st.integers(-1, 3))
def test_putting_in(text, old, parts, most):
    plain = str(text)
    for new in [*parts[:2], written("c"), "2"]:
        check(METHODS["replace"](text, old, new, most), plain.replace(old, new, most))
    check(METHODS["join"](text, parts), plain.join(parts))
    for name in ("center", "ljust", "rjust"):
        check(METHODS[name](text, 9, "2"), getattr(plain, name)(9, "2"))
        check(METHODS[name](text, 10, written("a")), getattr(plain, name)(10, "a"))
    assert own_of(METHODS["zfill"](written("-a"), 4)) == b"\1\0\0\1"


@given(texts, texts)
def test_formatting(one, other):
    form = written("a%s b%%%s")
    assert provenance.percent(form, (one, other)) == str(form) % (one, other)
    assert own_of(provenance.percent(form, (one, other))) == own_of(
        provenance.join("", [written("a"), one, written(" b"), written("%"), other])
    )
    named = provenance.percent(written("a%(x)sb"), {"x": one})
    assert named == f"a{one}b" and own_of(named) == b"\1" + own_of(one) + b"\1"
    form = written("a{}b{x}{{")
    result = provenance.format_text(form.format(one, x=other), form, (one,), {"x": other})
    assert own_of(result) == own_of(provenance.join("", [written("a"), one, written("b"), other, written("{")]))


def test_what_cannot_be_followed_is_the_chats():
    assert type(traced("ab", b"\1")) is str  # lengths differ
    assert type(METHODS["upper"](written("ß"))) is str  # became two characters
    assert own_of(METHODS["upper"](provenance.join("", [written("a"), "B"]))) == b"\1\0"
    assert type(METHODS["replace"](written("ab"), "", "x")) is str
    assert type(provenance.format_text("1", written("{0.real}"), (1,), {})) is str
    assert type(written("a") + "b") is str  # nobody looked
    assert not provenance.follows([written("a"), Markup("<")])


def test_a_text_can_be_copied_and_kept():
    text = provenance.join("", [written("a"), "B"])
    for same in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert same == "aB" and isinstance(same, Text) and same.own == b"\1\0"
    assert type(str(text)) is str
    assert Text("ab").own == b"\0\0"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_pythons_own(name):
    args = {"center": (9,), "ljust": (9,), "rjust": (9,), "zfill": (9,), "join": (["x", "y"],), "partition": ("b",),
            "rpartition": ("b",), "removeprefix": ("a",), "removesuffix": ("d",), "replace": ("b", "xx")}  # fmt: skip
    text = " abcd\nAB d"
    assert METHODS[name](written(text), *args.get(name, ())) == getattr(text, name)(*args.get(name, ()))


@given(texts, st.integers(0, 9), st.integers(0, 9))
def test_a_prompt_keeps_its_provenance_on_its_way_to_tokens(text, start, end):
    prompt = text if isinstance(text, Text) else Text(text)
    doubled = provenance.changed(prompt, lambda part: "".join(char * 2 for char in part if char not in "bB"))
    assert doubled == "".join(char * 2 for char in str(text) if char not in "bB")
    for part, expected in ((provenance.cut(prompt, start, end), str(text)[start:end]), (doubled, str(doubled))):
        assert isinstance(part, Text) and part == expected and right(part)
    assert own_of(provenance.like(prompt, "_" + text, 1)) == b"\1" + prompt.own
    for part in (provenance.cut("abc", 0, 2), provenance.changed("ab", str.upper), provenance.like("ab", "cd")):
        assert type(part) is str
