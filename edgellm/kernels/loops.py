"""Loops of staged code: those that are left when a kernel runs. A Python `for` is one that is unrolled as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from llvmlite import ir

from edgellm.kernels.values import I64, Emitter, Value


class Loops:
    """What a vocabulary says of loops."""

    builder: ir.IRBuilder

    def loop(
        self, n: Value, carried: Sequence[Value], body: Callable[..., Sequence[Value]], at_once: int = 1
    ) -> list[Value]:
        """`for i in range(n): carried = body(i, *carried)`, with the carried values in registers.

        at_once:  rounds that are written one after the other (the loop is unrolled), where counting would take long.
        """
        if at_once == 1:
            return self._loop(n, carried, body)

        def rounds(i: Value, *values: Value) -> Sequence[Value]:
            for j in range(at_once):
                values = tuple(body(i * at_once + j, *values))
            return values

        n_whole = n / at_once * at_once
        carried = self._loop(n / at_once, carried, rounds)
        return self._loop(n - n_whole, carried, lambda i, *values: body(n_whole + i, *values))

    def _loop(self, n: Value, carried: Sequence[Value], body: Callable[..., Sequence[Value]]) -> list[Value]:
        builder, register = self.builder, partial(Value, cast(Emitter, self))
        before = builder.block
        head, inside, after = (builder.append_basic_block(part) for part in ("loop.head", "loop.body", "loop.end"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), before)
        phis = [builder.phi(value.llvm.type) for value in carried]
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value.llvm, before)
        builder.cbranch(builder.icmp_signed("<", i, n.llvm), inside, after)
        builder.position_at_end(inside)
        results = body(register(i), *map(register, phis))
        i.add_incoming(builder.add(i, ir.Constant(I64, 1)), builder.block)
        for phi, value in zip(phis, results, strict=True):
            phi.add_incoming(value.llvm, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return [register(phi) for phi in phis]

    def repeat(self, n: Value, body: Callable[[Value], None]) -> None:
        """`for i in range(n): body(i)`, with nothing carried along."""

        def inside(i: Value) -> list[Value]:
            body(i)
            return []

        self.loop(n, [], inside)

    def elements(self, n: Value, lanes: int, body: Callable[[Value, int], None], at_once: int = 1) -> None:
        """body(i, lanes) for i = 0, lanes, 2 * lanes, ... and then body(i, 1) for each of the rest of n elements.

        at_once:  so many times as many lanes are done together first, as long as there are so many.
        """
        done: Value | int = 0
        for width in dict.fromkeys((at_once * lanes, lanes, 1)):
            n_parts = (n - done) / width

            def part(i: Value, done: Value | int = done, width: int = width) -> None:
                body(i * width + done, width)

            self.repeat(n_parts, part)
            done = n_parts * width + done
