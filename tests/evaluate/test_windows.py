"""A text in windows, and logits of a window a few at a time."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm
from edgellm.engine import model as engine_model
from edgellm.errors import UsageError
from edgellm.evaluate.windows import windows
from tests.arch import tiny


def test_each_window_begins_with_bos_in_the_place_of_its_first_token(model) -> None:
    ids = list(range(10, 45))
    assert windows(model.tokenizer, ids, 16) == [[tiny.BOS, *range(11, 26)], [tiny.BOS, *range(27, 42)]]
    assert windows(model.tokenizer, ids, 16, n_windows=1) == [[tiny.BOS, *range(11, 26)]]
    assert len(windows(model.tokenizer, ids, 16, n_windows=100)) == 2


def test_no_bos_where_the_model_wants_none(tmp_path) -> None:
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.ggml.add_bos_token"] = False
    with edgellm.load(checkpoint.save(tmp_path / "tiny.gguf"), n_ctx=64) as model:
        assert windows(model.tokenizer, list(range(10, 30)), 8) == [list(range(10, 18)), list(range(18, 26))]


@pytest.mark.parametrize(
    ("n_tokens", "n_ctx", "n_windows", "line"),
    [
        (0, 512, None, "the text has 0 tokens and one window needs 512"),
        (511, 512, None, "the text has 511 tokens and one window needs 512"),
        (511, 4, None, "a window of 4 tokens; expected at least 8"),
        (511, 8, 0, "0 windows; expected at least 1"),
    ],
)
def test_refusals(model, n_tokens: int, n_ctx: int, n_windows: int | None, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        windows(model.tokenizer, [5] * n_tokens, n_ctx, n_windows)


@pytest.mark.parametrize("first", [0, 1, 37, 149, 150, 1000])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_logits_in_pieces_are_those_of_one_batch(tiny_path, monkeypatch, first: int, rows_at_once: int) -> None:
    monkeypatch.setattr(engine_model, "PIECE_BYTES", rows_at_once * 4 * tiny.N_VOCAB)
    ids = np.random.default_rng(7).integers(3, tiny.N_VOCAB, 150).tolist()
    with edgellm.load(tiny_path, n_batch=64) as model:
        n_free = model._runner.cache.n_free_blocks
        pieces = list(model.logits_in_pieces(ids, first))
        assert all(1 <= len(piece) <= min(rows_at_once, 64) for piece in pieces)
        found = np.concatenate([np.empty((0, tiny.N_VOCAB), np.float32), *pieces])
        np.testing.assert_array_equal(found, model.logits(ids)[first:])
        assert model._runner.cache.n_free_blocks == n_free


def test_a_row_is_given_even_if_it_is_larger_than_a_piece(model, monkeypatch) -> None:
    monkeypatch.setattr(engine_model, "PIECE_BYTES", 1)
    assert [piece.shape for piece in model.logits_in_pieces([5, 6, 7], 1)] == [(1, tiny.N_VOCAB)] * 2
