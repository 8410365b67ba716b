"""Batches, passes and the validation split: each example once, and the same again from any step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.train.data.order import Batches, passes, shuffled, split
from edgellm.train.documents import Documents


def document(length: int, first: int = 0) -> Documents:
    return Documents.of(list(range(first, first + length)), [True] * length)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**40))
def test_each_example_once_in_an_epoch(n, size, seed):
    batches = Batches(n, size, seed)
    for epoch in range(2):
        taken = [batches.at(epoch * batches.n_per_epoch + step) for step in range(batches.n_per_epoch)]
        assert sorted(np.concatenate(taken).tolist()) == list(range(n))
        assert all(len(batch) == size for batch in taken[:-1]) and 1 <= len(taken[-1]) <= size


def test_order_is_of_seed_and_epoch_alone():
    batches = Batches(100, 7, 3)
    again = Batches(100, 7, 3)
    later = [again.at(step).tolist() for step in range(29, 0, -1)]  # asked for from any step
    assert later == [batches.at(step).tolist() for step in range(29, 0, -1)]
    orders = [shuffled(100, seed, epoch).tolist() for seed in (3, 4) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert shuffled(8, 0, 0).tolist() == KNOWN  # on every machine and version


KNOWN = [3, 2, 1, 6, 0, 7, 4, 5]


@given(st.lists(st.integers(1, 12), max_size=30))
def test_passes_hold_every_document_once_and_no_more_tokens_than_may_be(lengths):
    documents = [document(length, 100 * n) for n, length in enumerate(lengths)]
    found = passes(documents, 12)
    assert sorted(int(part.ids[0]) for held in found for part in held.apart()) == [100 * n for n in range(len(lengths))]
    assert all(len(held) <= 12 for held in found)
    assert sum(held.n_targets for held in found) == sum(part.n_targets for part in documents)
    assert len(found) <= 2 * -(-sum(lengths) // 12)  # first fit
    again = passes(documents, 12)
    assert [held.ids.tolist() for held in again] == [held.ids.tolist() for held in found]


def test_documents_of_one_example_may_lie_in_several_passes():
    joined = Documents.joined([document(8), document(8, 50)])
    assert [held.ids.tolist()[0] for held in passes([joined], 10)] == [0, 50]
    with pytest.raises(UsageError, match="a document has 8 tokens, and a pass holds 7"):
        passes([joined], 7)


@pytest.mark.parametrize(("share", "n_held"), [(0.1, 10), (0.001, 1), (7, 7), (7.0, 7), (0.999, 100), (99, 99)])
def test_split(share, n_held):
    examples = list(range(100))
    if n_held == 100:
        with pytest.raises(UsageError, match="takes 100 of 100 examples"):
            split(examples, share, 0)
        return
    learnt, held = split(examples, share, 0)
    assert sorted(learnt + held) == examples and len(held) == n_held
    assert learnt == sorted(learnt) and held == sorted(held)
    assert split(examples, share, 0) == (learnt, held)
    if n_held == 10:
        assert split(examples, share, 1)[1] != held


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan"), "half", True])
def test_shares_that_cannot_be(share):
    with pytest.raises(UsageError, match="validation is"):
        split([1, 2, 3], share, 0)
