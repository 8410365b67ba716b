"""Products of this machine: a number that could be true, from kernels that compute what they should."""

from __future__ import annotations

from edgellm.measure.products import measure_products


def test_products_are_measured() -> None:
    found = measure_products(1)
    assert found.n_threads == 1 and found.isa
    assert 1e8 < found.flops < 1e14
