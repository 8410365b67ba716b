"""Parameter objects: whatever is given to whichever field, it is taken as a plain value or refused by its name."""

from __future__ import annotations

import enum
import math
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, UsageError, shown
from edgellm.params import ACTIVATIONS, DEFAULT_SAMPLERS, KV_TYPES, MAX_THREADS, RuntimeConfig, SamplingParams

TYPES = ("response_format", "tools", "tool_choice")  # may be an object of a person's own
FIELDS = [(kind, field.name) for kind in (RuntimeConfig, SamplingParams) for field in fields(kind)]


class Five(enum.IntEnum):
    FIVE = 5


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("incomparable")


ODD = [
    None, True, False, "5", "", "f16", b"f16", [], [5], {}, (1,), object(), Unspeakable(), int, 1j, Decimal(1),
    Fraction(1, 3), Fraction(10**400), 10**400, 10**5000, -(10**5000), -1, 0, 1, 5, Five.FIVE, 0.5, -0.0, 2.0, 1e308,
    math.nan, math.inf, -math.inf, np.int8(5), np.uint64(2**64 - 1), np.float16(0.5), np.float32(np.nan), np.float64(1),
    np.bool_(True), np.array(5), np.array([5]), np.array(["f16", "f32"]), np.str_("f16"), "a\nb", "x" * 10**6,
]  # fmt: skip
values = st.one_of(
    st.sampled_from(ODD), st.integers(), st.floats(), st.text(), st.none(), st.booleans(), st.binary(), st.fractions()
)


@pytest.mark.parametrize(("kind", "name"), FIELDS)
@given(value=values)
def test_any_value_is_taken_or_refused_by_name(kind, name: str, value: Any) -> None:
    try:
        found = getattr(kind(**{name: value}), name)
    except UsageError as error:
        assert error.parameter == name
        text = str(error)
        assert text.startswith((f"{name} is ", f"{name} holds ", f"{name}["))
        assert "; expected " in text and "\n" not in text and len(text) < 200
    else:
        assert found is None or type(found) in (int, float, bool, str, tuple, dict) or name in TYPES
        if isinstance(found, (tuple, dict)):
            assert all(type(item) in (str, int) or callable(item) for item in found)
        elif found is not None and name not in TYPES:
            assert found == type(found)(value)
            assert isinstance(value, (bool, np.bool_)) == (type(found) is bool)


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_every_odd_value(kind, name: str) -> None:
    for value in ODD:
        test_any_value_is_taken_or_refused_by_name.hypothesis.inner_test(kind, name, value)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"n_ctx": True}, "n_ctx is True; expected a whole number"),
        ({"n_ctx": 0}, "n_ctx is 0; expected a number of at least 1"),
        ({"n_ctx": "512"}, "n_ctx is '512'; expected a whole number"),
        ({"n_threads": np.int64(-3)}, "n_threads is -3; expected a number of at least 1"),
        ({"n_threads": MAX_THREADS + 1}, f"n_threads is {MAX_THREADS + 1}; expected a number up to {MAX_THREADS}"),
        ({"n_batch": None}, "n_batch is None; expected a whole number"),
        ({"n_batch": 2.0}, "n_batch is 2.0; expected a whole number"),
        (
            {"kv_type": "q5_0"},
            f"kv_type is 'q5_0'; expected one of {', '.join(KV_TYPES)}, or two of them as KEYS:VALUES",
        ),
        (
            {"kv_type": ["f16"]},
            f"kv_type is ['f16']; expected one of {', '.join(KV_TYPES)}, or two of them as KEYS:VALUES",
        ),
        (
            {"kv_type": "q8_0:"},
            f"kv_type is 'q8_0:'; expected one of {', '.join(KV_TYPES)}, or two of them as KEYS:VALUES",
        ),
        (
            {"kv_type": "f16:q8_0:q4_0"},
            "kv_type is 'f16:q8_0:q4_0'; expected one of f16, q8_0, q4_0, f32, or two of them as KEYS:VALUES",
        ),
        ({"activations": "f16"}, f"activations is 'f16'; expected one of {', '.join(ACTIVATIONS)}"),
        ({"cache_bytes": 1.5}, "cache_bytes is 1.5; expected a whole number"),
    ],
)
def test_what_is_said_of_a_runtime(params, text: str) -> None:
    with pytest.raises(UsageError) as error:
        RuntimeConfig(**params)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"temperature": -1}, "temperature is -1.0; expected a number of at least 0"),
        ({"temperature": math.nan}, "temperature is nan; expected a finite number"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"temperature": None}, "temperature is None; expected a number"),
        ({"temperature": False}, "temperature is False; expected a number"),
        ({"top_k": 2.5}, "top_k is 2.5; expected a whole number"),
        ({"top_k": -1}, "top_k is -1; expected a number of at least 0"),
        ({"top_p": 1.5}, "top_p is 1.5; expected a number from 0 to 1"),
        ({"top_p": math.inf}, "top_p is inf; expected a finite number"),
        ({"min_p": -0.1}, "min_p is -0.1; expected a number from 0 to 1"),
        ({"repeat_penalty": 0}, "repeat_penalty is 0.0; expected a number above 0"),
        ({"repeat_last_n": None}, "repeat_last_n is None; expected a whole number"),
        ({"seed": -5}, "seed is -5; expected a number of at least 0"),
        ({"max_tokens": "3"}, "max_tokens is '3'; expected a whole number"),
        ({"max_tokens": True}, "max_tokens is True; expected a whole number"),
    ],
)
def test_what_is_said_of_sampling(params, text: str) -> None:
    with pytest.raises(UsageError) as error:
        SamplingParams(**params)
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"repeat_last_n": -2}, "repeat_last_n is -2; expected a number of at least -1"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf; expected a finite number"),
        ({"dry_base": 0.5}, "dry_base is 0.5; expected a number of at least 1"),
        ({"dry_allowed_length": 0}, "dry_allowed_length is 0; expected a number of at least 1"),
        ({"top_n_sigma": -0.5}, "top_n_sigma is -0.5; expected a number of at least 0, or -1 to turn it off"),
        ({"typical_p": 2}, "typical_p is 2.0; expected a number from 0 to 1"),
        ({"mirostat": 1}, "mirostat is 1; expected one of 0, 2"),
        ({"mirostat": 3}, "mirostat is 3; expected one of 0, 2"),
        ({"adaptive_target": 1.5}, "adaptive_target is 1.5; expected a number from 0 to 1, or -1 to turn it off"),
        ({"adaptive_decay": 1}, "adaptive_decay is 1.0; expected a number from 0 to 0.99"),
        ({"logit_bias": [1]}, "logit_bias is [1]; expected a dict of numbers by token id"),
        ({"logit_bias": {"the": 1}}, "logit_bias holds the key 'the'; expected token ids, whole numbers"),
        ({"logit_bias": {-1: 1}}, "logit_bias holds the key -1; expected token ids"),
        ({"logit_bias": {1: math.inf}}, "logit_bias[1] is inf; expected a finite number"),
        ({"logit_bias": {1: "2"}}, "logit_bias[1] is '2'; expected a number"),
        ({"stop": ""}, "stop holds ''; expected texts (str) of at least one character"),
        ({"stop": ["a", 5]}, "stop holds 5; expected texts (str) of at least one character"),
        ({"banned_strings": 5}, "banned_strings is 5; expected a text (str) or a list of texts"),
        ({"banned_strings": ["a"] * 1001}, "banned_strings has 1001 texts; up to 1000"),
        ({"stop": ["a"] * 1001}, "stop has 1001 texts; up to 1000"),
        ({"samplers": "top_k;topp"}, "samplers holds 'topp'; expected some of penalties, dry, top_n_sigma, top_k,"),
        ({"samplers": ["top_k", "top-k"]}, "samplers holds top_k twice; expected each step once"),
        ({"samplers": [5]}, "samplers holds 5; expected some of penalties"),
        ({"samplers": 5}, "samplers is 5; expected a list of names and functions"),
        ({"logprobs": -1}, "logprobs is -1; expected a number of at least 0"),
        # What contradicts each other.
        ({"typical_p": 0.9, "samplers": ["top_k"]}, "typical_p is 0.9, but samplers has no typ_p; add it there, or le"),
        ({"temperature": 0, "samplers": ["top_k"]}, "temperature is 0.0, but samplers has no temperature; add it ther"),
        ({"mirostat": 2, "samplers": "top_k"}, "mirostat is 2, but samplers has no mirostat; add it there, or leave m"),
        ({"mirostat": 2, "top_k": 7}, "top_k is 7, but mirostat stands in the place of that step; leave top_k out"),
        ({"mirostat": 2, "adaptive_target": 0.5}, "adaptive_target is 0.5, but mirostat stands in the place of that s"),
        ({"mirostat": 2, "samplers": "mirostat;temperature"}, "samplers has mirostat before others; it draws, so put "),
        ({"mirostat": 2, "temperature": 0}, "mirostat is 2, but temperature is 0, which always takes the likeliest to"),
        ({"adaptive_target": 0.5, "temperature": 0}, "adaptive_target is 0.5, but temperature is 0, which always take"),
        ({"dynatemp_range": 0.5, "temperature": 0}, "dynatemp_range is 0.5, but temperature is 0, which always takes "),
    ],
)  # fmt: skip
def test_what_is_said_of_steps(params, text: str) -> None:
    with pytest.raises(UsageError) as error:
        SamplingParams(**params)
    assert str(error.value).startswith(text)
    assert error.value.parameter in params


def test_the_order_of_steps() -> None:
    assert SamplingParams().order == DEFAULT_SAMPLERS
    assert SamplingParams().steps == ["top_k", "top_p", "min_p", "temperature"]
    assert SamplingParams(mirostat=2).steps == ["temperature", "mirostat"]
    assert SamplingParams(xtc_probability=0.5, top_k=0).steps == ["top_p", "min_p", "xtc", "temperature"]
    assert SamplingParams(samplers="Typical; temp;top-k;").samplers == ("typ_p", "temperature", "top_k")
    assert SamplingParams(samplers=[], temperature=1).steps == []
    assert SamplingParams(samplers=[print, "top_k"]).steps == [print, "top_k"]


def test_texts_and_biases_become_plain_ones() -> None:
    assert SamplingParams(stop="a").stop == ("a",)
    assert SamplingParams(banned_strings=["a", "b", "a"]).banned_strings == ("a", "b")
    assert SamplingParams(logit_bias={np.int64(5): np.float32(0.5), 6: -math.inf}).logit_bias == {5: 0.5, 6: -math.inf}


def test_numbers_of_other_kinds_become_plain_ones() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int16(3), top_p=Fraction(1, 2), seed=Five.FIVE)
    plain = SamplingParams(temperature=0.5, top_k=3, top_p=0.5, seed=5)
    assert repr(params) == repr(plain)
    assert RuntimeConfig(n_ctx=np.uint8(7), kv_type=np.str_("f32")) == RuntimeConfig(n_ctx=7, kv_type="f32")


def test_an_error_knows_its_parameter() -> None:
    assert EdgellmError("text").parameter is None
    error = UsageError("n_ctx is 0", parameter="n_ctx")
    assert (error.parameter, str(error), isinstance(error, ValueError)) == ("n_ctx", "n_ctx is 0", True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        ("a\nb", r"'a\nb'"),
        ("x" * 100, "'" + "x" * 56 + "..."),
        (Unspeakable(), "something of type Unspeakable"),
        (10**5000, "something of type int"),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
    ],
    ids=["number", "line", "long", "unspeakable", "digits", "array"],
)
def test_values_are_shown_in_one_short_line(value: Any, text: str) -> None:
    assert shown(value) == text
