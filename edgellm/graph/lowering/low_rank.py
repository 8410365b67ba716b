"""Rules of what adapters put beside a linear."""

from __future__ import annotations

from edgellm.graph.lowering.base import Lowering, rule
from edgellm.graph.nodes.dropout import Dropout
from edgellm.graph.nodes.low_rank import AddScaled, Choose, MultiplyColumns, Narrow, Widen
from edgellm.graph.ops import Table
from edgellm.kernels import gradient_records, low_rank_records, records


@rule(Narrow)
def lower_narrow(low: Lowering, node: Narrow) -> None:
    x, out = low.read(node.x), low.make(node)
    low.add_rows(
        "narrow",
        low_rank_records.NARROW,
        x,
        [x],
        [out],
        x=x,
        n_cols=x.width,
        format=node.weight.format,
        weight=node.weight,
        rank=out.width,
        scale=node.scale,
        scales=_scales(node.scales),
        out=out,
        out_stride=out.stride,
    )


@rule(Widen)
def lower_widen(low: Lowering, node: Widen) -> None:
    h = low.read(node.h)
    y, out = low.make_from(node.y, node)
    low.add_rows(
        "widen",
        low_rank_records.WIDEN,
        y,
        [y, h],
        [out],
        y=y,
        out=out,
        n_cols=y.width,
        h=h,
        h_stride=h.stride,
        format=node.weight.format,
        weight=node.weight,
        rank=h.width,
        scale=node.scale,
        scales=_scales(node.scales),
    )


@rule(AddScaled)
def lower_add_scaled(low: Lowering, node: AddScaled) -> None:
    x = low.read(node.x)
    y, out = low.make_from(node.y, node)
    low.add_rows(
        "add_scaled",
        low_rank_records.ADD_SCALED,
        y,
        [y, x],
        [out],
        y=y,
        out=out,
        n_cols=y.width,
        x=x,
        x_stride=x.stride,
        scale=node.scale,
        scales=_scales(node.scales),
    )


@rule(Dropout)
def lower_dropout(low: Lowering, node: Dropout) -> None:
    x, out = low.make_from(node.x, node)
    chance = node.chance
    low.add_rows("dropout", gradient_records.DROPOUT, x, [x], [out], x=x, out=out, p=chance.p, chance=chance.state)


@rule(MultiplyColumns)
def lower_multiply_columns(low: Lowering, node: MultiplyColumns) -> None:
    x, out = low.make_from(node.x, node)
    low.add_rows(
        "multiply_columns",
        low_rank_records.MULTIPLY_COLUMNS,
        x,
        [x],
        [out],
        x=x,
        weight=low.floats(node.weight),
        out=out,
        n_cols=x.width,
    )


@rule(Choose)
def lower_choose(low: Lowering, node: Choose) -> None:
    other = low.read(node.other)
    x, out = low.make_from(node.x, node)
    low.add_rows("choose", records.CHOOSE, x, [x, other], [out], x=x, other=other, out=out, scales=Table(node.scales))


def _scales(name: str | None) -> Table | int:
    """What every row counts, or none: all count 1."""
    return Table(name) if name is not None else 0
