"""Documents: what is learnt after each token, and documents one behind the other."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.train.documents import NOTHING, Documents


def test_a_token_is_learnt_at_the_place_of_the_one_before_it():
    document = Documents.of([7, 8, 9, 10], [True, False, True, True])
    assert document.targets.tolist() == [NOTHING, 9, 10, NOTHING]  # nothing comes before the first
    assert document.weights.tolist() == [0, 1, 1, 0]
    assert (document.ids.dtype, document.targets.dtype, document.weights.dtype) == (np.int32, np.int32, np.float32)
    assert (document.n_targets, document.total_weight, len(document), document.n_documents) == (2, 2, 4, 1)


def test_documents_joined_and_apart_again():
    parts = [Documents.of([1, 2], [False, True]), Documents.of([3], [True]), Documents.of([4, 5, 6], [True] * 3, 0.5)]
    joined = Documents.joined(parts)
    assert joined.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert joined.targets.tolist() == [2, -1, -1, 5, 6, -1]  # none reaches into the next document
    assert joined.starts.tolist() == [0, 2, 3]
    assert joined.positions.tolist() == [0, 1, 0, 0, 1, 2]
    for part, again in zip(parts, joined.apart(), strict=True):
        assert [getattr(again, name).tolist() for name in vars(part)] == [x.tolist() for x in vars(part).values()]
    assert len(Documents.joined([])) == 0


@pytest.mark.parametrize(
    "values",
    [
        ([1, 2], [1], [-1, -1], [0, 0]),
        ([1, 2], [2, 0], [-1, -1], [0, 0]),
        ([1, 2], [2], [-1], [0, 0]),
        ([1, 2], [2], [2, -1], [1, 1]),
    ],
)
def test_what_does_not_fit_together_is_refused(values):
    with pytest.raises(ValueError, match="token"):
        Documents(*map(np.array, values))
