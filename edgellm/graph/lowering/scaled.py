"""Rules of rows that are multiplied, softly capped, or cut into columns."""

from __future__ import annotations

from edgellm.graph.lowering.base import Lowering, rule
from edgellm.graph.nodes import Scale, SoftCap
from edgellm.graph.nodes.scaled import AmongZeros, Columns
from edgellm.graph.ops import Rows
from edgellm.kernels import records


@rule(Scale)
def lower_scale(low: Lowering, node: Scale) -> None:
    x, out = low.make_from(node.x, node)
    low.add_rows("scale", records.SCALE, x, [x], [out], x=x, out=out, factor=node.factor)


@rule(SoftCap)
def lower_soft_cap(low: Lowering, node: SoftCap) -> None:
    x, out = low.make_from(node.x, node)
    low.add_rows("soft_cap", records.SCALE, x, [x], [out], x=x, out=out, factor=node.cap)


@rule(Columns)
def lower_columns(low: Lowering, node: Columns) -> None:
    x, out = low.read(node.x), low.make(node)
    _copy(low, x, node.first, out, 0, node.n_cols)


@rule(AmongZeros)
def lower_among_zeros(low: Lowering, node: AmongZeros) -> None:
    x, out = low.read(node.x), low.make(node)
    _copy(low, x, 0, out, node.first, x.width, cleared=node.n_cols)


def _copy(low: Lowering, x: Rows, first: int, out: Rows, out_first: int, n_cols: int, cleared: int = 0) -> None:
    low.add_rows(
        "columns",
        records.COLUMNS,
        x,
        [x],
        [out],
        x=x,
        first=first,
        n_cols=n_cols,
        out=out,
        out_stride=out.stride,
        out_first=out_first,
        out_cols=cleared,
    )
