"""Rules of heads that are taken apart and put together."""

from __future__ import annotations

from edgellm.graph.lowering.base import Lowering, rule
from edgellm.graph.nodes.heads import HeadsAmongZeros, JoinHeads, SliceHeads
from edgellm.graph.ops import Rows
from edgellm.kernels import records


@rule(SliceHeads)
def lower_slice_heads(low: Lowering, node: SliceHeads) -> None:
    x, out = low.read(node.x), low.make(node)
    _copy(low, x, x.width // node.n_heads, node.start, out, node.size, 0, node.size, node.n_heads)


@rule(HeadsAmongZeros)
def lower_heads_among_zeros(low: Lowering, node: HeadsAmongZeros) -> None:
    x, out = low.read(node.x), low.make(node)
    zeros = {"first": 0, "n_cols": 0, "out_first": 0, "out_cols": out.width}
    low.add_rows("columns", records.COLUMNS, out, [x], [out], x=x, out=out, out_stride=out.stride, **zeros)
    size = x.width // node.n_heads
    _copy(low, x, size, 0, out, node.head_dim, node.start, size, node.n_heads)


@rule(JoinHeads)
def lower_join_heads(low: Lowering, node: JoinHeads) -> None:
    a, b, out = low.read(node.a), low.read(node.b), low.make(node)
    n = node.n_heads
    a_size, b_size = a.width // n, b.width // node.b_heads
    _copy(low, a, a_size, 0, out, a_size + b_size, 0, a_size, n)
    _copy(low, b, b_size if node.b_heads == n else 0, 0, out, a_size + b_size, a_size, b_size, n)


def _copy(
    low: Lowering, x: Rows, step: int, start: int, out: Rows, out_step: int, out_start: int, size: int, n_heads: int
) -> None:
    """size numbers of every head, from `start` on in x and from `out_start` on in out; a step is from head to head."""
    low.add_rows(
        "copy_heads",
        records.COPY_HEADS,
        out,
        [x],
        [out],
        x=x,
        x_stride=x.stride,
        x_step=step,
        x_start=start,
        out=out,
        out_stride=out.stride,
        out_step=out_step,
        out_start=out_start,
        size=size,
        n_heads=n_heads,
    )
