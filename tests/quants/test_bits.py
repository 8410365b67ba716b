from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgellm.quants import q3_k, q4_k
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.fit import fit_affine, fit_scale, nearest_index, round_to


def test_planes_lie_from_low_bits_to_high():
    packed = np.uint8([[0x21, 0x43]])
    np.testing.assert_array_equal(split_bits(packed, 4), [[[1, 3], [2, 4]]])
    np.testing.assert_array_equal(split_bits(packed, 2), [[[1, 3], [0, 0], [2, 0], [0, 1]]])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_join_is_the_inverse_of_split(bits):
    packed = np.arange(256, dtype=np.uint8).reshape(4, 64)
    np.testing.assert_array_equal(join_bits(split_bits(packed, bits), bits), packed)


@given(hnp.arrays(np.uint8, (3, 12)))
def test_group_scales_pack_as_they_unpack(packed):
    np.testing.assert_array_equal(q4_k.pack_scales(*q4_k.unpack_scales(packed)), packed)
    np.testing.assert_array_equal(q3_k.pack_scales(q3_k.unpack_scales(packed)), packed)
    assert max(a.max() for a in q4_k.unpack_scales(packed)) < 64


@settings(deadline=None)
@given(x=hnp.arrays(np.float32, (2, 16), elements=st.floats(-1, 1, width=32)), q_max=st.sampled_from([3, 15]))
def test_affine_fit_is_never_worse_than_the_plain_range(x, q_max):
    def error(d, m):
        q = np.clip(np.rint((x + m) / np.where(d > 0, d, 1)), 0, q_max) * (d > 0)
        return np.square(d * q - m - x).sum(-1)

    low = np.minimum(x.min(-1, keepdims=True), 0)
    d, m = fit_affine(x, q_max)
    assert (d >= 0).all() and (m >= 0).all()
    plain = error((x.max(-1, keepdims=True) - low) / q_max, -low)
    assert (error(d, m) <= plain * 1.001 + 1e-9).all()


def test_scale_fit_finds_the_scale_of_exact_multiples():
    levels = np.random.default_rng(0).integers(-32, 32, (8, 16)).astype(np.float32)
    levels[:, 3] = -32
    fitted = fit_scale(levels * np.float32(0.37), lambda y: round_to(y, -32, 31), low=-32, stretch=1)
    np.testing.assert_allclose(fitted, 0.37, rtol=1e-6)


def test_nearest_index():
    table = np.int8([-10, 0, 1, 20])
    x = np.float32([-99, -5.1, -4.9, 0.4, 0.6, 10, 11, 99])
    np.testing.assert_array_equal(nearest_index(x, table), [0, 0, 1, 1, 2, 2, 3, 3])
