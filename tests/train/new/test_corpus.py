"""A text as ids, windows and batches: every token once, in order, and validation apart."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.text import Tokenizer, load_tokenizer
from edgellm.train.new.corpus import MANY_DOCUMENTS, Corpus, WindowBatches, Windows, encode_corpus
from edgellm.train.new.vocabulary import KINDS, TokenizerSettings, learn_vocabulary

ORDINARY = (resources.files("edgellm.evaluate") / "ordinary.txt").read_text("utf-8")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(learn_vocabulary(TokenizerSettings(request.param, 400), [ORDINARY]).metadata)


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Tokenizer:
    return load_tokenizer(learn_vocabulary(TokenizerSettings("bytes"), []).metadata)


def corpus_of(tokenizer: Tokenizer, documents: list[str], n_ctx: int = 8, validation: float = 0.0) -> Corpus:
    pieces = ((document, True) for document in documents)
    return encode_corpus(tokenizer, pieces, n_ctx=n_ctx, validation=validation, seed=3)


def test_documents_stand_one_behind_the_other(tokenizer: Tokenizer) -> None:
    documents = ["One, two.", " three\n", "für 4"]
    corpus = corpus_of(tokenizer, documents)
    expected = [i for text in documents for i in [*tokenizer.encode(text, add_special=True), tokenizer.eos_id]]
    assert corpus.training.ids.tolist() == expected
    assert corpus.training.ids.dtype == np.uint16
    assert (corpus.n_documents, corpus.n_bytes) == (3, len("".join(documents).encode()))


def test_pieces_of_a_document_have_its_ids(tokenizer: Tokenizer) -> None:
    lines = ORDINARY.splitlines(keepends=True)
    pieces = [(line, False) for line in lines[:-1]] + [(lines[-1], True)]
    joined = encode_corpus(tokenizer, pieces, n_ctx=8, validation=0, seed=0)
    assert joined.training.ids.tolist() == corpus_of(tokenizer, [ORDINARY]).training.ids.tolist()


@given(st.integers(2, 40), st.integers(1, 12))
def test_windows_foresee_every_token_once(n: int, n_ctx: int) -> None:
    windows = Windows(np.arange(n, dtype=np.uint16), n_ctx)
    all_of_them = windows.documents(range(len(windows)))
    assert all_of_them.ids.tolist() == list(range(n - 1))
    assert all_of_them.targets.tolist() == list(range(1, n))
    assert all_of_them.lengths.max() <= n_ctx and (all_of_them.lengths[:-1] == n_ctx).all()
    assert (all_of_them.weights == 1).all()


@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_has_every_window_once(n: int, batch_size: int, at_once: int, epoch: int) -> None:
    windows = Windows(np.arange(n, dtype=np.uint16), 4)
    batches = WindowBatches(Corpus(windows, Windows(windows.ids[:1], 4), 1, 1), batch_size, at_once, seed=1)
    found = list(batches.epoch(epoch))
    assert len(found) == batches.n_batches
    assert all(part.n_documents <= at_once for batch in found for part in batch)
    assert all(sum(part.n_documents for part in batch) == batch_size for batch in found[:-1])
    targets = np.concatenate([part.targets for batch in found for part in batch])
    assert sorted(targets.tolist()) == list(range(1, n))
    again = np.concatenate([part.targets for batch in batches.epoch(epoch) for part in batch])
    assert again.tolist() == targets.tolist()
    assert not batches.validation


def test_epochs_have_orders_of_their_own() -> None:
    windows = Windows(np.arange(400, dtype=np.uint16), 4)
    orders = {tuple(windows.order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_validation_comes_in_passes_in_order() -> None:
    held = Windows(np.arange(31, dtype=np.uint16), 4)
    validation = WindowBatches(Corpus(held, held, 1, 1), 2, at_once=2, seed=0).validation
    assert [len(part) for part in validation] == [8, 8, 8, 6]
    assert np.concatenate([part.targets for part in validation]).tolist() == list(range(1, 31))
    assert validation[-1].targets.tolist() == validation[3].targets.tolist() == list(range(25, 31))
    with pytest.raises(IndexError):
        validation[4]


def test_the_end_of_a_single_text_validates(bytes_tokenizer: Tokenizer) -> None:
    corpus = corpus_of(bytes_tokenizer, ["x" * 79 + "y" * 20], validation=0.2)
    assert len(corpus.validation.ids) == 20 and corpus.n_tokens == 100
    assert bytes_tokenizer.decode(corpus.validation.ids[:-1].tolist()) == "y" * 19


def test_from_one_on_validation_is_a_number_of_windows(bytes_tokenizer: Tokenizer) -> None:
    corpus = corpus_of(bytes_tokenizer, ["x" * 99], validation=3)
    assert len(corpus.validation) == 3 and corpus.validation.n_targets == 24


@given(st.lists(st.integers(0, 9), min_size=MANY_DOCUMENTS, max_size=60), st.sampled_from([0.05, 0.3, 0.6]))
def test_of_many_documents_some_validate_whole(lengths: list[int], share: float) -> None:
    tokenizer = _bytes()
    documents = [f"<{n}{'.' * length}>" for n, length in enumerate(lengths)]
    corpus = corpus_of(tokenizer, documents, validation=share)
    training, held = (
        tokenizer.decode(windows.ids.tolist()).removesuffix("<|endoftext|>").split("<|endoftext|>")
        for windows in (corpus.training, corpus.validation)
    )
    assert sorted([*training, *held]) == sorted(documents)
    numbers = [[documents.index(document) for document in part] for part in (training, held)]
    assert numbers == [sorted(part) for part in numbers]  # each in the order of the text
    assert share * corpus.n_tokens - 1 <= len(corpus.validation.ids) <= share * corpus.n_tokens + 30
    assert numbers[1] != list(range(len(documents)))[-len(held) :] or len(held) == 1


def _bytes() -> Tokenizer:
    return load_tokenizer(learn_vocabulary(TokenizerSettings("bytes"), []).metadata)


def test_large_vocabularies_take_four_bytes(bytes_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytes_tokenizer, "n_vocab", 1 << 17)
    assert corpus_of(bytes_tokenizer, ["abc"]).training.ids.dtype == np.uint32


@pytest.mark.parametrize(("validation", "what"), [(0.0, "training"), (0.5, "training"), (0.9, "training")])
def test_a_text_that_is_too_short(bytes_tokenizer: Tokenizer, validation: float, what: str) -> None:
    with pytest.raises(UsageError, match=rf"the text has \d tokens, which leaves too few for {what}"):
        corpus_of(bytes_tokenizer, ["a"] if validation else [""], validation=validation)
