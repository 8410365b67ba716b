"""Memory in the order of a program's ops."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgellm.graph.ops import Chunks, Op, Packed
from edgellm.graph.record_memory import PIECE_BYTES, RecordMemory, gathered
from edgellm.kernels.low_rank_records import NARROW_INT8
from edgellm.kernels.registry import find
from edgellm.kernels.schema import LINE, Schema
from edgellm.machine.large_pages import LARGE_PAGE

POINT = Schema("point", x="i64", y="f64")


def test_the_records_of_an_op_are_one_piece() -> None:
    memory, kept = RecordMemory(), []
    for number in range(3 * PIECE_BYTES // POINT.dtype.itemsize // 5):
        memory.begin_op()
        first = memory.filled(POINT, {"x": number, "y": 0.5})
        others = memory.new(POINT, 4)
        start, n_lines = memory.op_span
        assert start % LINE == 0 and start == first.ctypes.data
        assert others.ctypes.data == start + POINT.dtype.itemsize and not others["x"].any()
        assert n_lines == 2  # 80 bytes
        others["x"] = number
        kept.append((first, others))
    for number, (first, others) in enumerate(kept):  # and none is another's
        assert first["x"] == number and first["y"] == 0.5 and (others["x"] == number).all()


def test_a_record_that_is_larger_than_a_piece() -> None:
    memory = RecordMemory()
    memory.begin_op()
    many = memory.new(POINT, PIECE_BYTES)
    assert len(many) == PIECE_BYTES and not many["x"].any()


def test_a_word_that_a_record_has_not() -> None:
    with pytest.raises(KeyError):
        RecordMemory().filled(POINT, {"z": 1})


def test_many_packed_matrices_lie_on_large_pages() -> None:
    packed = [Packed(np.full((1, LARGE_PAGE // 2 + 1), n, np.uint8)) for n in range(3)]
    kernel = find("narrow_int8")
    memory, places = gathered([Op(kernel, NARROW_INT8, {"weight": each}, Chunks("tokens")) for each in packed])
    assert memory.nbytes == 2 * LARGE_PAGE and (sys.platform == "win32" or memory.ctypes.data % LARGE_PAGE == 0)
    for n, each in enumerate(packed):
        start = places[each] - memory.ctypes.data
        assert start % LINE == 0 and (memory[start : start + each.n_bytes] == n).all()


def test_packed_matrices_lie_in_the_order_of_use() -> None:
    first, second, third = (Packed(np.full((2, n), n, np.uint8)) for n in (80, 30, 7))

    def op(*packed: Packed, parts: list[Op] | None = None) -> Op:
        kernel = find("narrow_int8")
        return Op(kernel, NARROW_INT8, dict(enumerate(packed)), Chunks("tokens"), parts=parts or [])  # type: ignore[arg-type]

    memory, places = gathered([op(parts=[op(first), op(second)]), op(third), op(first)])
    starts = [places[packed] - memory.ctypes.data for packed in (first, second, third)]
    assert starts == [0, 192, 256] and memory.ctypes.data % LINE == 0
    for packed, start in zip((first, second, third), starts, strict=True):
        np.testing.assert_array_equal(memory[start : start + packed.n_bytes], packed.array.reshape(-1))
