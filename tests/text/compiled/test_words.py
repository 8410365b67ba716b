"""Texts to ids by kernels: the same ids as by Python and by the originals, on every instruction set."""

from __future__ import annotations

import gc
import pickle
import random
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import FormatError, KernelError
from edgellm.formats.gguf import GGUFFile
from edgellm.kernels.word_records import LONGEST_WORD, MOST_PROBES
from edgellm.text import load_tokenizer
from edgellm.text.bpe import BytePairModel
from edgellm.text.compiled import turn, words
from edgellm.text.compiled.patterns import NoAutomatonError
from edgellm.text.tokenizer import Tokenizer

from .. import oracles
from .test_tables import place_of


@cache
def byte_level(pre: str) -> tuple[dict[str, Any], Any, Any]:
    metadata = oracles.train_byte_level(pre)
    return metadata, oracles.byte_level(metadata), oracles.byte_level(metadata, parse_special=True)


def is_compiled(tokenizer: Tokenizer) -> bool:
    model = tokenizer._model
    assert isinstance(model, BytePairModel)
    return model._turn.words(1, model._compiled) is not None


def in_python(metadata: dict[str, Any]) -> Tokenizer:
    """A tokenizer that never goes through kernels."""
    tokenizer = load_tokenizer(metadata)
    tokenizer._model._turn._done = True  # type: ignore[attr-defined]
    return tokenizer


DOCS = Path(__file__).parents[3] / "docs"
ORDINARY = [path.read_text(encoding="utf-8") for path in [Path(__file__), *sorted(DOCS.glob("a*.md"))]]
WITHOUT = {"deepseek-llm", "afmoe", "jais-2", "superbpe", "tiny_aya"}


@pytest.mark.parametrize("pre", [names[0] for names in oracles.ALIKE])
def test_same_ids_as_tokenizers(by_kernels: None, pre: str) -> None:
    metadata, plain, special = byte_level(pre)
    ours = load_tokenizer(metadata)

    @settings(max_examples=40)
    @given(oracles.texts)
    def check(text: str) -> None:
        assert ours.encode(text) == plain.encode(text).ids
        assert ours.encode(text, parse_special=True) == special.encode(text).ids

    check()
    for text in oracles.CORPUS:
        assert ours.encode(text) == plain.encode(text).ids
    assert is_compiled(ours) == (pre not in WITHOUT)


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2"])
def test_real_vocabularies(by_kernels: None, shared: Path, name: str) -> None:
    """The vectors of llama.cpp, and the ids of `tokenizers` for texts as people write them."""
    path = shared / "vocab" / f"{name}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    with GGUFFile.open(path) as file:
        ours, original = load_tokenizer(file.metadata), oracles.byte_level(file.metadata)
        for text, line in zip(texts, lines, strict=False):
            assert ours.encode(text) == [int(word) for word in line.split()]
        for text in [*ORDINARY, *oracles.CORPUS]:
            assert ours.encode(text) == original.encode(text).ids
        assert is_compiled(ours)


ALPHABETS = st.sampled_from(["ab", "thean ", "aé漢🦙 \n", "01 .,-=\n", "aaaab"])


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2"])
def test_long_runs_and_words(by_kernels: None, pre: str) -> None:
    metadata, original, _ = byte_level(pre)
    ours = load_tokenizer(metadata)

    @settings(max_examples=60)
    @given(ALPHABETS, st.integers(1, 3000), st.integers(0, 1000))
    def check(alphabet: str, length: int, seed: int) -> None:
        text = "".join(random.Random(seed).choices(alphabet, k=length))
        assert ours.encode(text) == original.encode(text).ids

    check()
    for n in (LONGEST_WORD - 1, LONGEST_WORD, LONGEST_WORD + 1, 5 * LONGEST_WORD):
        for text in ("a" * n, "x" + "the" * n, "漢" * n, f"the {'an' * n} the"):
            assert ours.encode(text) == original.encode(text).ids


def test_few_words_at_a_time(by_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    monkeypatch.setattr(words, "MOST_RECENT", 4)
    for pre in ("qwen2", "deepseek-v3", "chameleon", "falcon"):
        metadata, original, _ = byte_level(pre)
        ours = load_tokenizer(metadata)
        for text in [*oracles.CORPUS, " ".join(oracles.CORPUS), "x" * 700 + " the" * 50, "\n" * 40]:
            assert ours.encode(text) == original.encode(text).ids


def test_words_that_come_again(by_kernels: None) -> None:
    """More of them than are noted, long and short ones, whose keys share places."""
    metadata, original, _ = byte_level("llama-bpe")
    ours = load_tokenizer(metadata)
    chance = random.Random(4)
    some = ["".join(chance.choices("etaoinshrdlué", k=chance.randint(1, 20))) for _ in range(30_000)]
    text = " ".join(some + chance.choices(some, k=30_000))
    assert ours.encode(text) == original.encode(text).ids


@pytest.mark.parametrize(
    "change",
    [
        lambda m: [*m, *m[:200]],
        lambda m: m[::-1],
        lambda m: [*m[100:], *m[:100]],
        lambda m: ["a b c d", *m, "x", "x"],
    ],
)
def test_merges_repeated_and_in_any_order(by_kernels: None, change: Any) -> None:
    metadata = dict(byte_level("gpt-2")[0])
    metadata["tokenizer.ggml.merges"] = change(list(metadata["tokenizer.ggml.merges"]))
    ours, wanted = load_tokenizer(metadata), in_python(metadata)
    for text in oracles.CORPUS:
        assert ours.encode(text) == wanted.encode(text)
    assert is_compiled(ours)


@pytest.mark.parametrize("merge", ["abc", "a b c", " "])
def test_merges_that_are_no_pairs(by_kernels: None, merge: str) -> None:
    metadata = dict(byte_level("gpt-2")[0])
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], merge]
    ours, wanted = load_tokenizer(metadata), in_python(metadata)
    if merge == " ":
        assert ours.encode("the") == wanted.encode("the")
        return
    for one in (ours, wanted):
        with pytest.raises(FormatError, match=f"merges holds '{merge}'; expected two tokens with a space between"):
            one.encode("the")


def test_tokens_that_stand_twice(by_kernels: None) -> None:
    metadata = dict(byte_level("gpt-2")[0])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "the"]
    with pytest.raises(FormatError, match="expected each token once"):
        load_tokenizer(metadata).encode("the")


def test_odd_tokens(by_kernels: None) -> None:
    """Empty ones, with zeros, very long ones, and merges that make them."""
    metadata = dict(byte_level("gpt-2")[0])
    odd = ["", "", "a\0b", "\0", "ab" * 4000, "q" * 16, "q" * 8]
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *odd]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [1] * len(odd))
    merges = ["q q", "qq qq", "qqqq qqqq", "q" * 8 + " " + "q" * 8, *metadata["tokenizer.ggml.merges"], "\0 a"]
    metadata["tokenizer.ggml.merges"] = merges
    ours, wanted = load_tokenizer(metadata), in_python(metadata)
    for text in [*oracles.CORPUS, "q" * 16, "q" * 24, "a\0b"]:
        assert ours.encode(text) == wanted.encode(text)
    assert is_compiled(ours)


def test_a_merge_that_makes_no_token_counts_until_it_is_the_result(by_kernels: None) -> None:
    metadata = dict(byte_level("gpt-2")[0])
    tokens = list(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.merges"] = ["~ ^", "~^ ~", *metadata["tokenizer.ggml.merges"]]
    metadata["tokenizer.ggml.tokens"] = [*tokens, "~^~"]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], 1)
    assert load_tokenizer(metadata).encode("~^~") == [len(tokens)]
    with pytest.raises(FormatError, match="'~\\^', a token that the vocabulary lacks"):
        load_tokenizer(metadata).encode("the ~^")


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_bytes_without_tokens_are_dropped(by_kernels: None, pre: str) -> None:
    metadata = dict(byte_level(pre)[0])
    metadata["tokenizer.ggml.tokens"] = [
        f"<gone {token}>" if token in ("x", "Ċ", "ã", "9") else token for token in metadata["tokenizer.ggml.tokens"]
    ]
    metadata["tokenizer.ggml.merges"] = [m for m in metadata["tokenizer.ggml.merges"] if not set(m) & set("xĊã9")]
    ours, original = load_tokenizer(metadata), oracles.byte_level(metadata)
    for text in [*oracles.CORPUS, "x", "xx\n\nx 9", "axb"]:
        assert ours.encode(text) == original.encode(text).ids


def test_a_control_token_is_never_a_whole_word(by_kernels: None) -> None:
    metadata = dict(byte_level("llama-bpe")[0])
    types = metadata["tokenizer.ggml.token_type"].copy()
    types[[len(token) > 2 and n % 3 == 0 for n, token in enumerate(metadata["tokenizer.ggml.tokens"])]] = 3
    metadata["tokenizer.ggml.token_type"] = types
    ours, wanted = load_tokenizer(metadata), in_python(metadata)
    for text in oracles.CORPUS:
        assert ours.encode(text) == wanted.encode(text)


@cache
def alike_words(n: int, n_places: int) -> list[str]:
    chance = random.Random(3)
    letters = bytes(range(97, 123))
    some = {bytes(chance.choices(letters, k=6)) for _ in range(n * n_places * 5 // 4)}
    return [text.decode() for text in sorted(some) if place_of(text, n_places) == 5][:n]


def test_such_a_vocabulary_goes_through_python(by_kernels: None) -> None:
    metadata = dict(byte_level("gpt-2")[0])
    n_new = MOST_PROBES + 20
    n = len(metadata["tokenizer.ggml.tokens"]) + n_new
    alike = alike_words(n_new, 1 << (n + n // 2).bit_length())
    assert len(alike) == n_new
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *alike]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [1] * n_new)
    ours, wanted = load_tokenizer(metadata), in_python(metadata)
    assert ours.encode(oracles.CORPUS[0]) == wanted.encode(oracles.CORPUS[0])
    assert not is_compiled(ours)


def test_threads_that_encode_together_get_the_same_ids(by_kernels: None) -> None:
    metadata, original, _ = byte_level("smollm")
    ours = load_tokenizer(metadata)
    texts = []
    for n in range(12):
        chance = random.Random(n % 6)
        texts.append(
            " ".join("".join(chance.choices("etaoinshrdluéя漢", k=chance.randint(1, 12))) for _ in range(3000))
        )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ours.encode, texts))
    assert found == [original.encode(text).ids for text in texts]


@pytest.mark.parametrize("pre", ["llama-bpe", "deepseek-v3"])
def test_a_text_in_pieces(by_kernels: None, monkeypatch: pytest.MonkeyPatch, pre: str) -> None:
    """What stands between tokens of chats is cut and merged at once, and each piece by itself."""
    monkeypatch.setattr(words, "MOST_WORDS", 5)
    metadata, _, original = byte_level(pre)
    ours = load_tokenizer(metadata)
    special = next(text for text in ("<|im_end|>", "<tool>") if ours.has_special(text))
    for apart in (special, special * 2):
        text = apart.join(["", *oracles.CORPUS, " ", "a", "", "漢", *(["  x  "] * 9)])
        assert ours.encode(text, parse_special=True) == original.encode(text).ids
    assert is_compiled(ours)


def test_a_text_that_makes_an_automaton_too_large(by_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata, original, _ = byte_level("qwen2")
    ours = load_tokenizer(metadata)
    assert is_compiled(ours)

    def refuse(*_: Any) -> None:
        raise NoAutomatonError

    monkeypatch.setattr("edgellm.text.compiled.automaton.Automaton.learn", refuse)
    assert ours.encode(oracles.CORPUS[2]) == original.encode(oracles.CORPUS[2]).ids


class FakeStore:
    """A store that has kernels, or must compile them, or cannot."""

    def __init__(self, has: bool, fails: bool = False) -> None:
        self._has, self._fails = has, fails
        self.n_loaded = self.n_asked = 0

    def has(self, _: Any) -> bool:
        self.n_asked += 1
        return self._has

    def load(self, _: Any) -> None:
        self.n_loaded += 1
        if self._fails:
            raise KernelError("no compiler")


@pytest.mark.parametrize("runs_a_model", [False, True])
def test_kernels_are_loaded_when_there_has_been_much_text(monkeypatch: pytest.MonkeyPatch, runs_a_model: bool) -> None:
    store, made = FakeStore(has=True), object()
    monkeypatch.setattr(turn, "_store", lambda: store)
    monkeypatch.setattr(turn, "_loads_kernels", lambda: runs_a_model)
    load_from = turn.READY_FROM if runs_a_model else turn.LOAD_FROM
    words_of = partial(turn.Turn().words, make=lambda _: made)  # type: ignore[arg-type, return-value]
    for _ in range(load_from // turn.SHORT - 1):
        assert words_of(turn.SHORT) is None
    for _ in range(10_000):  # short ones never wait
        assert words_of(turn.SHORT - 1) is None
    assert store.n_loaded == 0
    assert words_of(turn.SHORT) is made
    assert store.n_loaded == 1
    assert words_of(turn.SHORT) is made
    assert words_of(turn.SHORT - 1) is None


def test_kernels_are_compiled_for_a_very_long_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = FakeStore(has=False), object()
    monkeypatch.setattr(turn, "_store", lambda: store)
    words_of = partial(turn.Turn().words, make=lambda _: made)  # type: ignore[arg-type, return-value]
    for _ in range(1000):
        assert words_of(turn.COMPILE_FROM // 10) is None
    assert store.n_loaded == 0 and store.n_asked < 15
    assert words_of(turn.COMPILE_FROM) is made
    assert store.n_loaded == 1


def test_where_nothing_can_be_compiled_python_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore(True, fails=True)
    monkeypatch.setattr(turn, "_store", lambda: store)
    words_of = partial(turn.Turn().words, make=lambda _: pytest.fail("there is nothing to make it of"))
    for _ in range(4):
        assert words_of(turn.LOAD_FROM) is None
    assert store.n_loaded == 1  # it is not tried for ever


@pytest.mark.parametrize("n_times", [1, turn.LOAD_FROM])
def test_who_is_done_with_a_tokenizer_has_its_file_back_at_once(n_times: int) -> None:
    """Without a collection of cycles: on Windows, a file that is mapped cannot be replaced."""
    tokenizer = load_tokenizer(byte_level("gpt-2")[0])
    tokenizer.encode("a lighthouse " * n_times)
    model = weakref.ref(tokenizer._model)
    gc.disable()
    try:
        del tokenizer
        assert model() is None
    finally:
        gc.enable()


def test_a_prompt_that_is_typed_imports_nothing_of_it() -> None:
    code = (
        "import sys, pickle; from edgellm.text import load_tokenizer\n"
        "metadata = pickle.load(sys.stdin.buffer)\n"
        "load_tokenizer(metadata).encode('Write a story about a lighthouse. ' * 100)\n"
        "assert 'edgellm.text.compiled.words' not in sys.modules and 'llvmlite' not in sys.modules"
    )
    metadata = pickle.dumps(byte_level("gpt-2")[0])
    subprocess.run([sys.executable, "-c", code], input=metadata, check=True, timeout=60)
