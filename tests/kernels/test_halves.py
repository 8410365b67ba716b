"""float16 in and out of registers, for every bit pattern there is: through the kernels that convert."""

from __future__ import annotations

import numpy as np

from edgellm.kernels import reference
from edgellm.quants import FORMATS

from .compiled import Compiled

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_every_half_is_read_exactly(compiled: Compiled) -> None:
    row = HALVES.view(np.uint8)[None]
    got = compiled.embed(np.array([0]), row, FORMATS["F16"])[0]
    np.testing.assert_array_equal(got, HALVES.astype(np.float32))
    numbers = ~np.isnan(got)
    assert np.array_equal(np.signbit(got[numbers]), np.signbit(HALVES[numbers])), "-0.0 lost its sign"


def test_floats_are_rounded_to_the_nearest_half(compiled: Compiled) -> None:
    """All halves, all ties between two of them, and the neighbours of each, beyond both ends too."""
    exact = HALVES[np.isfinite(HALVES)].astype(np.float32)
    positive = np.sort(exact[exact >= 0])
    ties = np.append((positive[:-1] + positive[1:]) / 2, [65520, 2.0**-25])
    points = np.concatenate([positive, ties])
    near = np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)])
    special = [np.inf, np.nan, 1e38, 65519.996, 1e-45, 2.0**-26, 2.0**-126, 3.4028235e38]
    check(compiled, np.concatenate([near, -near, special, np.negative(special)]).astype(np.float32))


def test_floats_of_any_bits_are_rounded(compiled: Compiled) -> None:
    bits = np.random.default_rng(3).integers(0, 1 << 32, 1 << 17, np.uint32)
    check(compiled, bits.view(np.float32))


def check(compiled: Compiled, numbers: np.ndarray) -> None:
    """Through `kv_append`, whose cache is float16."""
    n_tokens = -(-len(numbers) // 1024)
    k = np.resize(numbers, (n_tokens, 16, 64))
    caches = [reference.new_cache(-(-n_tokens // 64), 16, 64) for _ in range(2)]
    for side, cache in zip((compiled, reference), caches, strict=True):
        side.kv_append(*cache, np.arange(n_tokens), k, -k)
    for got, want in zip(*caches, strict=True):
        assert np.array_equal(np.isnan(got), np.isnan(want))
        numbers_only = ~np.isnan(want)
        np.testing.assert_array_equal(got[numbers_only].view(np.uint16), want[numbers_only].view(np.uint16))
