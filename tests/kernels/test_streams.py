"""What models with several streams of hidden states do beside: each kernel against its twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.kernels import reference_streams, stream_records
from edgellm.kernels.schema import Schema

from .compiled import Compiled, Output, into, rows

# Sums of some hundred float32 products.
FLOAT32 = 5e-6


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(9)


def run(compiled: Compiled, op: str, schema: Schema, n_tokens: int, **fields: Any) -> None:
    compiled._run(op, schema, -(-n_tokens // 2), n_tokens, chunk_tokens=2, **fields)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("n_out", "n_in", "n_cols", "plus"), [(4, 4, 33, 0.0), (3, 1, 16, 1.0), (1, 2, 7, -0.5)])
def test_add_mixed(compiled: Compiled, rng, in_place: bool, n_out: int, n_in: int, n_cols: int, plus: float) -> None:
    x, y, weights = (rng.standard_normal((5, n), np.float32) for n in (n_out * n_cols, n_in * n_cols, n_out * n_in))
    y_rows, weight_rows = rows(y), rows(weights)
    with into(x, in_place) as (source, out):
        run(
            compiled, "add_mixed", stream_records.ADD_MIXED, len(x), x=source, stride=out.stride, y=y_rows,
            y_stride=y_rows.shape[1], weights=weight_rows, weights_stride=weight_rows.shape[1], plus=plus,
            n_cols=n_cols, n_out=n_out, n_in=n_in, out=out,
        )  # fmt: skip
    want = reference_streams.add_mixed(x, y, weights, n_cols, plus)
    np.testing.assert_allclose(out.take(), want, atol=FLOAT32)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("first", "times"), [(0, 1), (20, 2), (10, 3)])
def test_add_to_columns_is_exact(compiled: Compiled, rng, in_place: bool, first: int, times: int) -> None:
    x, y = rng.standard_normal((5, 40), np.float32), rng.standard_normal((5, 10), np.float32)
    y_rows = rows(y)
    with into(x, in_place) as (source, out):
        run(
            compiled, "add_to_columns", stream_records.ADD_TO_COLUMNS, len(x), x=source, stride=out.stride, y=y_rows,
            y_stride=y_rows.shape[1], n_cols=10, first=first, times=times, out=out,
        )  # fmt: skip
    np.testing.assert_array_equal(out.take(), reference_streams.add_to_columns(x, y, first, times))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("width", [1, 16, 33, 300])
def test_match_size(compiled: Compiled, rng, in_place: bool, width: int) -> None:
    """Rows of zeros stay zeros, and are made like zeros."""
    x, like = (rng.standard_normal((5, width), np.float32) * 3 for _ in range(2))
    x[1] = like[2] = 0
    x[3] *= 1e-4
    like_rows = rows(like)
    with into(x, in_place) as (source, out):
        run(
            compiled, "match_size", stream_records.MATCH_SIZE, len(x), x=source, like=like_rows, stride=out.stride,
            n_cols=width, least=1e-5, out=out,
        )  # fmt: skip
    np.testing.assert_allclose(out.take(), reference_streams.match_size(x, like, 1e-5), rtol=FLOAT32, atol=1e-12)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("deviations", [-1.0, 0.0, 1.6448536])
def test_keep_large(compiled: Compiled, rng, in_place: bool, deviations: float) -> None:
    x = rng.standard_normal((5, 333), np.float32) + 2
    with into(x, in_place) as (source, out):
        run(
            compiled, "keep_large", stream_records.KEEP_LARGE, len(x), x=source, stride=out.stride, n_cols=333,
            deviations=deviations, out=out,
        )  # fmt: skip
    found, want = out.take(), reference_streams.keep_large(x, deviations)
    np.testing.assert_allclose(found, want, atol=FLOAT32)
    assert isinstance(out, Output) and (found == 0).any() and (found > 0).any()
