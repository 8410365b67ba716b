"""Examples as documents: base models, texts, pairs, and what is too long or has nothing to learn."""

from __future__ import annotations

import pytest

from edgellm.errors import TemplateError, UsageError
from edgellm.text import load_tokenizer
from edgellm.train.data.config import DataConfig
from edgellm.train.data.encoder import Encoder, Judged, Pair
from edgellm.train.data.examples import Chat, Completion, Labelled, Preference, Prompt, Text
from edgellm.train.data.vocabulary import Vocabulary
from edgellm.train.documents import NOTHING, Documents
from tests.arch import tiny
from tests.text import oracles

from .vocabularies import CHATML, marked, model, system, tokenizer, user, vocabulary

HEAD = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
CHAT = Chat([user("Hi"), model("Hello")])
BASE = load_tokenizer(tiny.vocabulary())  # whose texts begin with <s>


def encoded(example, template: str | None = CHATML, **settings):
    return Encoder(vocabulary(template), DataConfig(**settings)).encode(example)


def shown(example, template: str | None = CHATML, **settings) -> list[str]:
    return [marked(part) for part in encoded(example, template, **settings).encoded.apart()]


def test_a_prompt_and_its_completion_are_a_turn_of_a_chat():
    assert shown(Completion("Hi", "Hello", bare="not this")) == [f"{HEAD}[[Hello<|im_end|>]]"]
    assert shown(Completion("Hi", "Hello", system="S")) == [
        f"<|im_start|>system\nS<|im_end|>\n{HEAD}[[Hello<|im_end|>]]"
    ]


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("answers", f"{HEAD}[[Hello<|im_end|>]]"),
        ("last", f"{HEAD}[[Hello<|im_end|>]]"),
        ("all", f"<|im_start|>[[{HEAD.removeprefix('<|im_start|>')}Hello<|im_end|>\n]]"),
    ],
)
def test_what_is_trained_on(train_on, expected):
    assert shown(CHAT, train_on=train_on) == [expected]


def test_a_base_model_goes_on_from_a_prompt():
    """As the original does: the whole text in one, the end of a text behind it."""
    said = "Q: <|im_start|> 1+1?\nA:"
    assert shown(Completion(said, " 2"), None) == [f"{said}[[ 2<|end|>]]"]
    result = encoded(Completion(said, " 2"), None).encoded
    assert result.ids.tolist() == [*oracles.byte_level(oracles.train_byte_level("gpt-2")).encode(said + " 2").ids,
                                   tokenizer().eos_id]  # fmt: skip
    assert shown(Completion("not this", "2", bare="### X:\n", system="S"), None) == ["S\n\n### X:\n[[2<|end|>]]"]
    assert shown(Completion("ab", "2"), None, train_on="all") == [
        f"{tokenizer().decode(tokenizer().encode('ab2')[:1])}[[{tokenizer().decode(tokenizer().encode('ab2')[1:])}<|end|>]]"
    ]
    encoder = Encoder(Vocabulary(BASE, None, BASE.n_vocab), DataConfig())
    assert marked(encoder.encode(Completion("in", "he")).encoded, BASE) == "<s> in[[he</s>]]"


def test_texts_are_as_the_tokenizer_frames_them():
    assert shown(Text("a <|im_end|> b"))[0].replace("[[", "").replace("]]", "") == "a <|im_end|> b"
    encoder = Encoder(Vocabulary(BASE, None, BASE.n_vocab), DataConfig())
    document = encoder.encode(Text("in the")).encoded
    assert document.ids.tolist() == BASE.encode("in the", add_special=True)
    assert document.n_targets == len(document) - 1


@pytest.mark.parametrize("tokens", [tokenizer(), BASE], ids=["no bos", "bos"])
def test_a_file_is_learnt_in_pieces_each_token_once(tokens):
    text = "the rain in the hills, he said; " * 20
    encoder = Encoder(Vocabulary(tokens, None, tokens.n_vocab), DataConfig(max_length=16))
    result = encoder.encode(Text(text, in_pieces=True))
    parts = result.encoded.apart()
    ids = tokens.encode(text, add_special=True)
    assert [target for part in parts for target in part.targets.tolist() if target != NOTHING] == ids[1:]
    assert max(result.lengths) == 16 and result.n_long == 0
    begins = {int(part.ids[0]) for part in parts}
    assert begins == {tokens.bos_id} if tokens is BASE else len(parts) > 1
    for part in parts:
        assert part.targets.tolist()[:-1] == part.ids.tolist()[1:]


def test_a_longer_example_is_cut_or_dropped():
    whole = encoded(CHAT)
    n = len(whole.encoded)
    cut = encoded(CHAT, max_length=n - 1)
    assert cut.encoded.ids.tolist() == whole.encoded.ids.tolist()[:-1]
    assert cut.encoded.targets.tolist() == [*whole.encoded.targets.tolist()[: n - 2], NOTHING]
    assert (cut.lengths, cut.n_long, cut.left_out) == ([n], 1, "")
    dropped = encoded(CHAT, max_length=n - 1, long="drop")
    assert (dropped.encoded, dropped.n_long, dropped.left_out) == (None, 1, "long")
    nothing = encoded(CHAT, max_length=5)
    assert (nothing.encoded, nothing.n_long, nothing.left_out) == (None, 1, "untrained")
    assert encoded(CHAT, max_length=n, long="drop").encoded is not None


@pytest.mark.parametrize(
    "example", [Chat([user("Hi")]), Chat([system("S")]), Chat([user("Hi"), model("Yo")], n_given=2), Text("")]
)
def test_nothing_to_learn(example):
    assert encoded(example).left_out == "untrained"


def test_pairs_and_judged_answers():
    pair = Preference(Completion("Hi", "No, not at all"), Completion("Hi", "No"))
    result = encoded(pair, train_on="all")  # of these, only answers are ever compared
    assert isinstance(result.encoded, Pair)
    assert marked(result.encoded.chosen) == f"{HEAD}[[No, not at all<|im_end|>]]"
    assert marked(result.encoded.rejected) == f"{HEAD}[[No<|im_end|>]]"
    assert len(result.lengths) == 2
    assert encoded(pair, max_length=len(result.encoded.rejected), long="drop").left_out == "long"
    one_sided = Preference(CHAT, Chat([user("Hi"), user("no answer")], n_given=1))
    assert (encoded(one_sided).encoded, encoded(one_sided).left_out) == (None, "untrained")
    judged = encoded(Labelled(Completion("Hi", "Hello"), False)).encoded
    assert isinstance(judged, Judged) and not judged.good
    assert marked(judged.documents) == f"{HEAD}[[Hello<|im_end|>]]"
    assert encoded(Labelled(Chat([user("Hi")]), True)).left_out == "untrained"


def test_what_the_template_is_told():
    template = CHATML + "{{ mood }}{{ place }}"
    example = Chat(CHAT.messages, variables={"mood": "sunny"})
    (document,) = shown(example, template, train_on="all", template_variables={"mood": "rainy", "place": "here"})
    assert document.endswith("sunnyhere]]")


def test_tools_and_variables_of_texts():
    """They are told to a template; without one nobody looks at them, which is said."""
    tool = {"type": "function", "function": {"name": "finds_words"}}
    asked = Completion("Hi", "Hello", tools=[tool], variables={"who": "Ann"})
    (text,) = shown(asked, "{{ who }} " + CHATML)
    assert text.startswith("Ann ") and "finds_words" in text
    encoder = Encoder(vocabulary(None), DataConfig())
    for example in (asked, Preference(asked, asked), Labelled(asked, True), Prompt("Hi", [tool], {"who": "Ann"})):
        assert encoder.unused_keys(example) == ["tools", "chat_template_kwargs"]
    assert encoder.unused_keys(Completion("Hi", "Hello")) == []


def test_a_chat_for_a_base_model():
    for example in (CHAT, Preference(CHAT, CHAT)):
        with pytest.raises(TemplateError, match=r"is a base model, .* give a template, or write the data as") as raised:
            encoded(example, None)
        assert raised.value.parameter == "template"


def test_messages_that_a_template_cannot_take():
    with pytest.raises(UsageError, match="message 0: 'content' is a int"):
        encoded(Chat([user(7), model("x")]))  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="fails"):
        encoded(CHAT, "{{ 1 / 0 }}")


def test_a_token_without_an_embedding():
    tokens = tokenizer()
    encoder = Encoder(Vocabulary(tokens, vocabulary().template, tokens.n_vocab - 4), DataConfig())
    with pytest.raises(UsageError, match=r"holds token \d+ \('<\|im_end\|>'\), which was added"):
        encoder.encode(CHAT)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": "many"}, "max_length is 'many'"),
        ({"train_on": "first"}, "train_on is 'first'; expected one of answers, last, all"),
        ({"long": "keep"}, "long is 'keep'; expected one of cut, drop"),
        ({"skip_bad": 1}, "skip_bad is 1"),
        ({"template_variables": []}, r"template_variables is \[\]"),
        ({"template_variables": {1: 2}}, r"template_variables is \{1: 2\}"),
        ({"template_variables": {"messages": 3}}, "holds 'messages', which the template is given anyway"),
        ({"template_variables": {"self": 3}}, "holds 'self', which the template is given anyway"),
    ],
)
def test_settings_that_cannot_work(settings, problem):
    with pytest.raises(UsageError, match=problem):
        DataConfig(**settings)


def test_documents_are_what_is_learnt_of():
    assert isinstance(encoded(CHAT).encoded, Documents)
