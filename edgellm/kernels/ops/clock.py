"""A look at the clock, as an op between others: `edgellm bench --profile` puts one behind each op of a program."""

from __future__ import annotations

from llvmlite import ir

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import CLOCK
from edgellm.kernels.staged import I64, staged


def build_clock(isa):
    """Call the system's function, with two words, which fits those of every system (see graph/profiler.py)."""
    op_at = record_viewer(CLOCK)

    @staged(isa, "void", "i64", "i64", "i64")
    def call(v, function, first, second):
        kind = ir.FunctionType(ir.IntType(32), [I64, I64])
        v.builder.call(v.builder.inttoptr(function.llvm, kind.as_pointer()), [first.llvm, second.llvm])

    def clock(record, chunk, thread):
        op = op_at(record)
        call(op.function, op.first, op.second)

    return clock
