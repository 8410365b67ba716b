"""New tokenizers: what is learnt, how it encodes, and that nothing is lost."""

from __future__ import annotations

import io
from functools import cache
from importlib import resources
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as TheirTokenizer
from tokenizers import models, pre_tokenizers, trainers

from edgellm.errors import UsageError
from edgellm.text import ChatTemplate, Tokenizer, load_tokenizer
from edgellm.text.vocabulary import PREFIX
from edgellm.train.new.vocabulary import END, KINDS, RULES, TokenizerSettings, learn_vocabulary

ORDINARY = (resources.files("edgellm.evaluate") / "ordinary.txt").read_text("utf-8")
OTHER = "It's the 3rd of May, isn't it?\n\n\tNaïve — 漢字 🙂 \x00\x7f\ufffe <|endoftext|> <s> <unk>  end\r\n"
N_VOCAB = 400


def learnt(kind: str, n_vocab: int = N_VOCAB, text: str = ORDINARY, **more: Any) -> Tokenizer:
    settings = TokenizerSettings(tokenizer=kind, n_vocab=n_vocab, **more)
    return load_tokenizer(learn_vocabulary(settings, [text]).metadata)


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return learnt(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for text in (ORDINARY, OTHER, " ", "  two", "\n", "".join(map(chr, range(1, 0x250)))):
        ids = tokenizer.encode(text)
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids  # a text only looks like the token that ends one


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(exclude_characters="▁", codec="utf-8"), max_size=40))  # SentencePiece's own space
def test_round_trip_of_any_text(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_every_byte_has_a_token(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    single = {tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)}
    assert {bytes([byte]) for byte in range(256)} <= single


def test_sizes() -> None:
    sizes = {kind: tokenizer_of(kind).n_vocab for kind in KINDS}
    assert sizes == {"bpe": N_VOCAB, "sentencepiece": N_VOCAB, "bytes": 257}


def test_bpe_encodes_as_tokenizers_do() -> None:
    theirs = TheirTokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, min_frequency=2, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    theirs.train_from_iterator([ORDINARY], trainer)
    for text in (ORDINARY, OTHER.replace(END, "")):  # which theirs takes for the token
        assert tokenizer_of("bpe").encode(text) == theirs.encode(text).ids


def test_sentencepiece_encodes_as_the_package_does() -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ORDINARY.split("\n")), model_writer=written, model_type="bpe", vocab_size=N_VOCAB,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, split_digits=True, num_threads=1, minloglevel=3,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ours = tokenizer_of("sentencepiece")
    for text in (ORDINARY, "It's the 3rd of May, isn't it?\n\n\tNaïve — 漢字 🙂  end\r\n"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, add_special=True) == [1, *theirs.encode(text)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_tokens(kind: str) -> None:
    settings = TokenizerSettings(tokenizer=kind, n_vocab=400)
    one, other = (learn_vocabulary(settings, [ORDINARY]).metadata for _ in range(2))
    assert one.keys() == other.keys()
    assert all(repr(one[key]) == repr(other[key]) for key in one)
    assert list(one[f"{PREFIX}tokens"]) == list(other[f"{PREFIX}tokens"])


@pytest.mark.parametrize("pre", RULES)
def test_words_are_cut_by_the_rule_that_is_named(pre: str) -> None:
    tokenizer = learnt("bpe", 320, "12345 12345 12345 don't don't DON'T DON'T\n" * 3, pre=pre)
    assert tokenizer.decode(tokenizer.encode("12345 don't")) == "12345 don't"
    numbers = [token for i in range(tokenizer.n_vocab) if (token := tokenizer.token_bytes(i).strip()).isdigit()]
    in_threes = dict.fromkeys(("llama-bpe", "smaug-bpe", "gpt-4o", "deepseek-v3"), 3)
    assert max(map(len, numbers)) == ({"gpt-2": 5, "olmo": 5} | in_threes).get(pre, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_further_control_tokens_and_a_template(kind: str) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    settings: Any = {"special_tokens": ["<|im_start|>", "<|im_end|>"], "chat_template": template}
    metadata = learn_vocabulary(TokenizerSettings(kind, N_VOCAB, **settings), [ORDINARY]).metadata
    tokenizer = load_tokenizer(metadata)
    chat = ChatTemplate.from_metadata(metadata, tokenizer)
    assert chat is not None
    ids = tokenizer.encode(chat.render([{"role": "user", "content": "<|im_end|>"}]), parse_special=True)
    assert tokenizer.decode(ids) == "<|im_start|>user\n<|im_end|><|im_end|>\n"
    by_name = {tokenizer.token_name(i): i for i in range(tokenizer.n_vocab)}
    assert ids.count(by_name["<|im_end|>"]) == 1  # the other is what somebody typed
    assert {by_name["<|im_end|>"], tokenizer.eos_id} <= tokenizer.stop_ids


def test_a_known_template_by_its_name() -> None:
    source = TokenizerSettings(chat_template="chatml").chat_template
    assert source is not None and "<|im_start|>user" in ChatTemplate(source).render([{"role": "user", "content": "Hi"}])
    assert TokenizerSettings(chat_template=source).chat_template == source  # as train.yaml has it


def test_a_short_text_gives_fewer_tokens_and_says_so() -> None:
    found = learn_vocabulary(TokenizerSettings(n_vocab=1000), ["abab abab"])
    assert found.n_vocab < 270
    assert found.notes == [f"the text gives {found.n_vocab} tokens, fewer than the 1000 that n_vocab allows"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "word"}, "tokenizer is 'word'; expected one of bpe, sentencepiece, bytes"),
        ({"pre": "bert"}, "pre is 'bert'; expected one of gpt-2"),
        ({"n_vocab": 0}, "n_vocab is 0; expected a number of at least 1"),
        ({"n_vocab": True}, "n_vocab is True; expected a whole number"),
        ({"special_tokens": [END]}, "special_tokens is '<|endoftext|>'; expected texts that differ"),
        ({"special_tokens": ["<a>", "<a>"]}, "special_tokens is '<a>'; expected texts that differ"),
        ({"special_tokens": "<a>"}, "special_tokens is '<a>'; expected a list of texts"),
        ({"chat_template": 1}, "chat_template is 1; expected a text"),
        (
            {"chat_template": "chatmls"},
            "chat_template is 'chatmls'; expected a Jinja text that writes the messages, or one",
        ),
        ({"character_coverage": 2}, "character_coverage is 2.0; expected a number from 0.5 to 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TokenizerSettings(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_vocab": 256}, "n_vocab is 256; expected at least 257: all bytes and the control tokens"),
        ({"n_vocab": 259, "special_tokens": ["<a>"], "tokenizer": "sentencepiece"},
         "n_vocab is 259; expected at least 260: all bytes and the control tokens"),
        ({"n_vocab": 5000, "tokenizer": "sentencepiece"}, "n_vocab is 5000; the text gives no more than "),
        ({"n_vocab": 265, "tokenizer": "sentencepiece"}, "n_vocab is 265; the characters of the text alone need "),
    ],
)  # fmt: skip
def test_vocabularies_that_the_text_does_not_fill(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        learn_vocabulary(TokenizerSettings(**settings), [ORDINARY])
    assert str(caught.value).startswith(message)


def test_keys_are_those_of_gguf() -> None:
    metadata = learn_vocabulary(TokenizerSettings(n_vocab=300), [ORDINARY]).metadata
    assert metadata[f"{PREFIX}model"] == "gpt2" and metadata[f"{PREFIX}pre"] == "gpt-2"
    assert metadata[f"{PREFIX}tokens"][0] == END
    assert metadata[f"{PREFIX}bos_token_id"] == metadata[f"{PREFIX}eos_token_id"] == 0
    assert len(metadata[f"{PREFIX}tokens"]) == len(metadata[f"{PREFIX}token_type"]) == 300
