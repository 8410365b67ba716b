from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from edgellm.quants import q3_k, q4_k
from edgellm.quants.bits import join_bits, split_bits
from edgellm.quants.fit import nearest_index


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


def test_nearest_index():
    table = np.int8([-10, 0, 1, 20])
    x = np.float32([-99, -5.1, -4.9, 0.4, 0.6, 10, 11, 99])
    np.testing.assert_array_equal(nearest_index(x, table), [0, 0, 1, 1, 2, 2, 3, 3])
