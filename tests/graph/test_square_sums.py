"""Adding up the squares of what linears are given."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm
from edgellm.errors import UsageError
from edgellm.graph import Graph
from edgellm.graph.nodes import add, linear
from tests.arch import tiny

from .conftest import lowered, program_of, rows_for, tensor

N_TOKENS = 70


@pytest.fixture(scope="module", params=["F32", "Q8_0"])
def path(request, tmp_path_factory):
    return tiny.llama().save(tmp_path_factory.mktemp("models") / "tiny.gguf", request.param)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(7).integers(3, tiny.N_VOCAB, N_TOKENS).tolist()


def squares(path, ids, **settings) -> dict[str, np.ndarray]:
    with edgellm.load(path, **settings) as model, model.square_sums() as sums:
        model.logits(ids)
        return sums


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
    with edgellm.load(path) as model, model.square_sums() as sums:
        list(model.logits_in_pieces(ids, first=N_TOKENS))
        once = {name: total.copy() for name, total in sums.items()}
        list(model.logits_in_pieces(ids, first=N_TOKENS))
        for name, total in sums.items():
            np.testing.assert_allclose(total, 2 * once[name], rtol=1e-12)
            assert (total == 0).all() == (name == "output.weight")


def test_they_change_no_logits_and_end_with_their_context(path, ids) -> None:
    with edgellm.load(path) as model:
        usual, plain = model._runner.programs, model.logits(ids)
        with pytest.raises(ZeroDivisionError), model.square_sums() as sums:
            np.testing.assert_array_equal(model.logits(ids), plain)
            once = {name: total.copy() for name, total in sums.items()}
            raise ZeroDivisionError
        assert model._runner.programs is usual
        np.testing.assert_array_equal(model.logits(ids), plain)
        for name, total in sums.items():
            np.testing.assert_array_equal(total, once[name])
        with model.square_sums() as others:  # start at nothing
            assert not any(total.any() for total in others.values())


def test_a_closed_model_has_none(path) -> None:
    model = edgellm.load(path)
    model.close()
    with pytest.raises(UsageError, match="the model is closed"):
        model.square_sums()


def test_of_any_values_of_a_graph(store, team_of) -> None:
    """Of an input, of one that nobody else needs, and of one that would otherwise be changed in place."""
    g = Graph()
    x = g.input(40)
    y = add(x, x)
    z = linear(y, tensor("w", 24, 40))
    sums = {value: np.zeros(48) for value in (x, y, z)}
    rows = rows_for(x, 16)
    program = program_of(lowered(g, square_sums=sums), store, team_of(1), inputs={x: rows})
    rows[:, :40] = np.random.default_rng(1).standard_normal((16, 40))
    program.run({"tokens": 9})
    want = np.square(rows[:9].astype(np.float64)).sum(0)
    np.testing.assert_allclose(sums[x], want)
    np.testing.assert_allclose(sums[y], 4 * want)
    product = 2 * rows[:9, :40].astype(np.float64) @ tensor("w", 24, 40).dequantize().T
    np.testing.assert_allclose(sums[z][:24], np.square(product).sum(0), rtol=1e-5)
