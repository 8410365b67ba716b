"""A graph that observes what its linears are given."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm
from edgellm.errors import UsageError
from tests.arch import tiny

N_TOKENS = 70


@pytest.fixture(scope="module", params=["F32", "Q8_0"])
def path(request, tmp_path_factory):
    return tiny.llama().save(tmp_path_factory.mktemp("models") / "tiny.gguf", request.param)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(7).integers(3, tiny.N_VOCAB, N_TOKENS).tolist()


def squares(path, ids, **settings) -> dict[str, np.ndarray]:
    with edgellm.load(path, observe=True, **settings) as model:
        model.logits(ids)
        return model.input_squares


def test_the_same_bits_in_whatever_batches_and_threads(path, ids) -> None:
    whole = squares(path, ids, n_threads=2)
    assert {name: sums.shape for name, sums in whole.items() if name.startswith("blk.1.")} == {
        **{f"blk.1.attn_{part}.weight": (64,) for part in ("q", "k", "v", "output")},
        "blk.1.ffn_gate.weight": (64,),
        "blk.1.ffn_up.weight": (64,),
        "blk.1.ffn_down.weight": (96,),
    }
    assert all((sums > 0).all() for sums in whole.values())
    for n_batch, n_threads in [(1, 1), (3, 2), (64, 1)]:
        pieces = squares(path, ids, n_batch=n_batch, n_threads=n_threads)
        for name, sums in whole.items():
            np.testing.assert_array_equal(pieces[name], sums)


def test_sums_grow_with_every_run_and_the_head_counts_only_the_tokens_it_sees(path, ids) -> None:
    with edgellm.load(path, observe=True) as model:
        list(model.logits_in_pieces(ids, first=N_TOKENS))
        once = {name: sums.copy() for name, sums in model.input_squares.items()}
        list(model.logits_in_pieces(ids, first=N_TOKENS))
        for name, sums in model.input_squares.items():
            np.testing.assert_allclose(sums, 2 * once[name], rtol=1e-12)
            assert (sums == 0).all() == (name == "output.weight")


def test_observing_changes_no_logits(path, ids) -> None:
    with edgellm.load(path) as plain, edgellm.load(path, observe=True) as observed:
        np.testing.assert_array_equal(plain.logits(ids), observed.logits(ids))
        assert plain.input_squares == {}


def test_observe_is_yes_or_no(path) -> None:
    with pytest.raises(UsageError, match="observe is 'all'"):
        edgellm.load(path, observe="all")
