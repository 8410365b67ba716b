"""What can be handed to a model wrongly: each mistake is one UsageError that names the parameter, or is no mistake."""

from __future__ import annotations

import itertools
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edgellm
from edgellm.errors import ContextOverflowError, EdgellmError, FileProblem, UsageError
from tests.arch import tiny

HI = [{"role": "user", "content": "Hi"}]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}{{ m.content }}</s>{% endfor %}{{ extra }}"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A tiny model with a chat template and a context of 64 tokens, of 1,024 that it was trained on."""
    checkpoint = tiny.llama(num_hidden_layers=1)
    checkpoint.metadata["tokenizer.chat_template"] = TEMPLATE
    with edgellm.load(checkpoint.save(tmp_path_factory.mktemp("models") / "chat.gguf"), n_ctx=64, n_threads=1) as model:
        yield model


def refuses(call, parameter: str, text: str, error: type[EdgellmError] = UsageError) -> None:
    with pytest.raises(error) as found:
        call()
    assert str(found.value) == text and found.value.parameter == parameter


TEXTS = [(None, "None"), (5, "5"), (b"the", "b'the'"), (["the"], "['the']"), ({}, "{}")]


@pytest.mark.parametrize(("text", "found"), TEXTS)
def test_what_is_no_text(chatty, text: Any, found: str) -> None:
    refuses(lambda: chatty.tokenize(text), "text", f"text is {found}; expected a text (str)")


IDS = [
    (None, "is None"), (5, "is 5"), (b"\x05", "is b'\\x05'"), ({5: 6}, "is {5: 6}"), (["a"], "holds 'a'"),
    ([1.0], "holds 1.0"), ([None], "holds None"), ([5, True], "holds True"), ([[5]], "holds [5]"),
    (np.array([0.5]), f"holds {np.float64(0.5)!r}"), (np.array([[5]]), "holds array([5])"),
    (np.array([True]), f"holds {np.True_!r}"), ([b"a"], "holds b'a'"), ("5", "is '5'"),
    (bytearray(b"5"), "is bytearray(b'5')"),
]  # fmt: skip


@pytest.mark.parametrize(("ids", "found"), IDS)
def test_what_are_no_ids(chatty, ids: Any, found: str) -> None:
    for call in (chatty.logits, chatty.detokenize, chatty.logits_in_pieces):
        refuses(lambda call=call: call(ids), "token_ids", f"token_ids {found}; expected token ids, whole numbers")
    if not isinstance(ids, str):
        expected = "expected a text (str) or token ids, whole numbers"
        refuses(lambda: chatty.generate(ids), "prompt", f"prompt {found}; {expected}")


@pytest.mark.parametrize(
    "wrong", [-1, 320, 2**63, -(2**70), 10**5000], ids=["-1", "320", "2**63", "-2**70", "10**5000"]
)
def test_ids_beyond_the_vocabulary(chatty, wrong: int) -> None:
    shown = "something of type int" if wrong > 2**64 else wrong
    for ids in ([wrong], [5, wrong, 6], (wrong,)):
        for call, name in ((chatty.logits, "token_ids"), (chatty.generate, "prompt"), (chatty.detokenize, "token_ids")):
            text = f"{name} holds {shown}; the ids of this vocabulary go from 0 to 319"
            refuses(lambda call=call, ids=ids: call(ids), name, text)


def test_a_tokenizer_alone(chatty) -> None:
    tokenizer = edgellm.load_tokenizer(chatty.path)
    for text, found in TEXTS:
        refuses(lambda text=text: tokenizer.encode(text), "text", f"text is {found}; expected a text (str)")
    for ids, found in IDS:
        refuses(lambda ids=ids: tokenizer.decode(ids), "ids", f"ids {found}; expected token ids, whole numbers")
    refuses(lambda: tokenizer.decode([320]), "ids", "ids holds 320; the ids of this vocabulary go from 0 to 319")
    assert tokenizer.decode(np.array([5, 6])) == "\x02\x03"


def test_ids_of_all_kinds(chatty) -> None:
    expected = chatty.logits([5, 6])
    for ids in ((5, 6), iter([5, 6]), range(5, 7), np.array([5, 6], np.uint16), torch.tensor([5, 6])):
        np.testing.assert_array_equal(chatty.logits(ids), expected)
    assert chatty.detokenize(np.array([5, 6])) == chatty.detokenize(i for i in (5, 6)) == "\x02\x03"
    assert chatty.detokenize([]) == ""


def test_nothing_to_compute(chatty) -> None:
    for ids in ([], (), iter(()), np.zeros(0, np.int64)):
        refuses(lambda ids=ids: chatty.logits(ids), "token_ids", "token_ids is empty; expected at least one token")
        refuses(lambda ids=ids: chatty.generate(ids), "prompt", "the prompt is empty; expected at least one token")
    assert list(chatty.generate("", max_tokens=0)) == []  # this model begins every text with a token


def test_an_empty_text_without_a_first_token(tmp_path) -> None:
    checkpoint = tiny.llama(num_hidden_layers=1)
    checkpoint.metadata["tokenizer.ggml.add_bos_token"] = False
    with edgellm.load(checkpoint.save(tmp_path / "a.gguf"), n_threads=1) as model:
        refuses(lambda: model.generate(""), "prompt", "the prompt is empty; expected at least one token")


def test_more_than_the_context_holds(chatty, tmp_path) -> None:
    """A larger context is advised only where there can be one."""
    advice = "shorten it, or load with a larger n_ctx (up to 1024)"
    for ids, n in (
        ([5] * 65, 65),
        (range(300), 300),
        (iter([5] * 65), "more than 64"),
        (itertools.repeat(5), "more than 64"),
    ):
        text = f"token_ids has {n} tokens and the context holds 64: {advice}"
        refuses(lambda ids=ids: chatty.logits(ids), "n_ctx", text, ContextOverflowError)
    text = f"the prompt has {len(chatty.tokenize('e ' * 99)) + 1} tokens and the context holds 64: {advice}"
    refuses(lambda: chatty.generate("e " * 99), "n_ctx", text, ContextOverflowError)
    with edgellm.load(chatty.path, n_threads=1) as whole:
        advice = "shorten it; this model was trained on no longer texts"
        text = f"the prompt has 1025 tokens and the context holds 1024: {advice}"
        refuses(lambda: whole.generate([5] * 1025), "prompt", text, ContextOverflowError)


MESSAGES = [
    (None, "messages is None"), ("text", "messages is 'text'"), (5, "messages is 5"), (b"text", "messages is b'text'"),
    (HI[0], f"messages is {HI[0]}"), (["text"], "message 0 is 'text'"), ([None], "message 0 is None"),
    ([HI], f"message 0 is {HI}"), ([{}], "message 0 has no 'role'"), ([{"role": 5}], "message 0: 'role' is a int"),
    ([*HI, {"content": "Hi"}], "message 1 has no 'role'"), ([{"role": None}], "message 0 has no 'role'"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "found"), MESSAGES)
def test_what_are_no_messages(chatty, messages: Any, found: str) -> None:
    with pytest.raises(UsageError) as error:
        chatty.chat(messages)
    assert str(error.value).startswith(f"{found}; expected a ") and "\n" not in str(error.value)


def test_no_messages(chatty) -> None:
    for messages in ([], (), iter(())):
        refuses(lambda m=messages: chatty.chat(m), "messages", "messages is empty; expected at least one message")


def test_messages_of_all_kinds(chatty) -> None:
    expected = "".join(chatty.chat(HI, temperature=0.0, max_tokens=5))
    for messages in (tuple(HI), iter(HI), (message for message in HI)):
        assert "".join(chatty.chat(messages, None, temperature=0.0, max_tokens=5)) == expected


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        (5, "is 5; expected a dict of values by name"),
        ("extra", "is 'extra'; expected a dict of values by name"),
        ({5: 6}, "is {5: 6}; expected a dict of values by name"),
        ({"messages": []}, "holds 'messages', which chat() itself gives the template"),
        ({"add_generation_prompt": False}, "holds 'add_generation_prompt', which chat() itself gives the template"),
        ({"self": 1}, "holds 'self', which chat() itself gives the template"),
    ],
)  # fmt: skip
def test_variables_that_cannot_be(chatty, variables: Any, text: str) -> None:
    refuses(lambda: chatty.chat(HI, variables), "template_variables", f"template_variables {text}")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("temprature", "did you mean temperature?"),
        ("topk", "did you mean top_k?"),
        ("n_ctx", f"expected {', '.join(field.name for field in fields(edgellm.SamplingParams))}"),
    ],
)
def test_words_that_are_no_keywords(chatty, word: str, expected: str) -> None:
    for call in (lambda: chatty.generate("a", **{word: 1}), lambda: chatty.chat(HI, **{word: 1})):
        refuses(call, word, f"{word} is no sampling parameter; {expected}")


def test_keywords_that_cannot_work(chatty) -> None:
    for call in (lambda **k: chatty.generate("a", **k), lambda **k: chatty.chat(HI, **k)):
        refuses(lambda call=call: call(top_k=1.5), "top_k", "top_k is 1.5; expected a whole number")
        refuses(lambda call=call: call(max_tokens=True), "max_tokens", "max_tokens is True; expected a whole number")


def test_every_keyword_arrives(chatty, monkeypatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(chatty, "_answers", lambda ids, params, n, adapters: given.append((params, n, adapters)))
    keywords = {"temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "repeat_penalty": 2.0,
                "repeat_last_n": 7, "seed": 11, "max_tokens": 13}  # fmt: skip
    for call in (lambda **k: chatty.generate("a", **k), lambda **k: chatty.chat(HI, **k)):
        call(**keywords, n=2, adapters={"a": 0.5})
        call()
        assert given == [(edgellm.SamplingParams(**keywords), 2, {"a": 0.5}), (edgellm.SamplingParams(), None, None)]
        given.clear()


class Bytes(os.PathLike):
    def __fspath__(self):
        return b"model.gguf"


@pytest.mark.parametrize("model", [None, 5, True, b"model.gguf", "", [], Bytes(), {"a": 1}])
def test_what_is_no_model(model: Any) -> None:
    for call in (edgellm.load, edgellm.load_tokenizer):
        with pytest.raises(UsageError, match=r"^model is .*; expected a path or the name of a model$") as error:
            call(model)
        assert error.value.parameter == "model"


@pytest.mark.parametrize("model", ["no such model", "a\0b", "x" * 5000, Path("no/such.gguf"), ".", "no.gguf"])
def test_a_model_that_is_not_there(model: Any) -> None:
    for call in (edgellm.load, edgellm.load_tokenizer):
        with pytest.raises((UsageError, FileProblem)) as error:
            call(model)
        assert "\n" not in str(error.value)


def test_a_model_made_without_load(tiny_path) -> None:
    with edgellm.Model(str(tiny_path), edgellm.RuntimeConfig(n_threads=1)) as model:  # type: ignore[arg-type]
        assert "tiny.gguf" in repr(model)
    refuses(lambda: edgellm.Model(5, edgellm.RuntimeConfig()), "path", "path is 5; expected a path")  # type: ignore[arg-type]
    refuses(lambda: edgellm.Model(tiny_path, 5), "runtime", "runtime is 5; expected a RuntimeConfig")  # type: ignore[arg-type]


def test_load_takes_what_runtime_config_takes(tiny_path) -> None:
    wrongs = {"n_ctx": True, "n_threads": 0, "n_batch": 2.5, "kv_type": 5, "activations": 0.5, "cache_bytes": 0}
    for name, wrong in wrongs.items():
        with pytest.raises(UsageError, match=f"^{name} is ") as error:
            edgellm.load(tiny_path, **{name: wrong})
        assert error.value.parameter == name
    refuses(lambda: edgellm.load(tiny_path, progress=5), "progress", "progress is 5; expected a function")
    text = "a context of 2000 tokens was asked for; this model was trained on 1024: choose n_ctx up to that"
    refuses(lambda: edgellm.load(tiny_path, n_ctx=2000), "n_ctx", text)
    with edgellm.load(tiny_path, n_ctx=np.int64(50), n_threads=np.uint8(1), n_batch=np.int16(9)) as model:
        assert (model.n_ctx, type(model.n_ctx)) == (50, int) and model.logits([5] * 50).shape == (50, tiny.N_VOCAB)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a"]), inner),
    max_leaves=6,
)


def works_or_says_why(call) -> None:
    try:
        call()
    except EdgellmError as error:
        assert "\n" not in str(error)


@settings(max_examples=300)
@given(value=anything)
def test_anything_at_all(chatty, value: Any) -> None:
    """It works, or it is an error of edgellm's own, in one line."""
    for call in (
        lambda: chatty.tokenize(value),
        lambda: chatty.detokenize(value),
        lambda: chatty.logits(value),
        lambda: list(chatty.generate(value, max_tokens=1)),
        lambda: list(chatty.chat(value, max_tokens=1)),
        lambda: list(chatty.chat(HI, value, max_tokens=1)),
    ):
        works_or_says_why(call)
