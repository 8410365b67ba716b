"""Batches of tokens in, logits out: the same however body and head are run."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.engine.runner import HEAD_TOKENS, Span

IDS = [5, 9, 77, 30, 12, 60, 41, 8, 100, 3, 2, 99, 55, 1, 7, 23, 31, 14, 88, 19]


@pytest.mark.parametrize("n", [1, 3, HEAD_TOKENS, len(IDS)])
def test_logits_made_along_with_the_body(model, n: int) -> None:
    """Where few are wanted, the head runs in the same call; asked for afterwards, or for others, it runs again."""
    runner, rows = model._runner, range(n)
    texts = [runner.cache.sequence() for _ in range(2)]
    try:
        for text in texts:
            text.reserve(n)
        assert runner.run_body([Span(texts[0], IDS[:n])])
        apart = [(logits.copy(), maxima.copy()) for logits, maxima in runner.logits_of(rows)]
        assert runner.run_body([Span(texts[1], IDS[:n])], rows=rows)
        for asked in (rows, [0], rows):
            found = [(logits.copy(), maxima.copy()) for logits, maxima in runner.logits_of(asked)]
            np.testing.assert_equal(found, [apart[row] for row in asked])
    finally:
        for text in texts:
            text.release()
