"""Learning merges: the same as `tokenizers` learns, whatever the text."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from edgellm.text.pretokenizers import PRETOKENIZERS
from edgellm.train.new.merges import ALPHABET, LONGEST_WORD, count_words, learn_merges

ORDINARY = (resources.files("edgellm.evaluate") / "ordinary.txt").read_text("utf-8")
CODE = "def f(x):\n    if x:\n        return x\n\n\n" * 3 + "x = f(f(1234567))\t# élan, naïve, 漢字かな, 안녕 🙂\n"


def theirs(text: str, n_tokens: int, pre: str) -> list[tuple[str, str]]:
    """The merges of `tokenizers`, trained on the same words."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRETOKENIZERS[pre].patterns]
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, spelled])
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "gpt-4o", "tekken"])
def test_merges_are_those_of_tokenizers(pre: str) -> None:
    text = ORDINARY + CODE
    tokens, merges = learn_merges(count_words([text], PRETOKENIZERS[pre]), 700)
    assert merges == theirs(text, 700, pre)
    assert len(merges) > 200
    assert tokens == [*ALPHABET, *dict.fromkeys(left + right for left, right in merges)]


@given(st.text("ab é漢\n'1", max_size=200))
@settings(max_examples=60)
def test_merges_of_any_text_are_those_of_tokenizers(text: str) -> None:
    """With so few letters, nearly all pairs stand equally often, and tokens are made in two ways."""
    _, merges = learn_merges(count_words([text], PRETOKENIZERS["gpt-2"]), 320)
    assert merges == list(dict.fromkeys(theirs(text, 320, "gpt-2")))


def test_a_pair_that_stands_once_is_not_joined() -> None:
    tokens, merges = learn_merges({"abc": 1, "xy": 2}, 1000)
    assert merges == [("x", "y")]
    assert len(tokens) == 257


def test_words_count_as_often_as_they_stand() -> None:
    _, merges = learn_merges(Counter({"ab": 3, "cd": 5, "bc": 4}), 258)
    assert merges == [("c", "d"), ("b", "c")]


def test_a_long_text_without_a_space_takes_no_minutes() -> None:
    letters = "".join(random.Random(1).choices("acgt", k=300_000))
    begun = time.process_time()
    tokens, _ = learn_merges(count_words([letters], PRETOKENIZERS["gpt-2"]), 280)
    assert len(tokens) == 280
    assert time.process_time() - begun < 30
    assert all(len(token) <= LONGEST_WORD for token in tokens)


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    learn_merges(count_words([ORDINARY], PRETOKENIZERS["gpt-2"]), 260, lambda *now: seen.append(now))
    assert seen == [(257, 260), (258, 260), (259, 260), (260, 260)]
