"""Rules of what models with several streams of hidden states do beside."""

from __future__ import annotations

from edgellm.graph.lowering.base import Lowering, rule
from edgellm.graph.nodes.streams import AddMixed, AddToColumns, KeepLarge, MatchSize
from edgellm.kernels import stream_records


@rule(AddMixed)
def lower_add_mixed(low: Lowering, node: AddMixed) -> None:
    y, weights = low.read(node.y), low.read(node.mixture)
    # Parts of x are written while those of the others are still needed.
    is_alone = node.x not in (node.y, node.mixture)
    x, out = low.make_from(node.x, node) if is_alone else (low.read(node.x), low.make(node))
    low.add_rows(
        "add_mixed",
        stream_records.ADD_MIXED,
        x,
        [x, y, weights],
        [out],
        x=x,
        y=y,
        y_stride=y.stride,
        weights=weights,
        weights_stride=weights.stride,
        plus=node.plus,
        n_cols=node.n_cols,
        n_out=x.width // node.n_cols,
        n_in=y.width // node.n_cols,
        out=out,
    )


@rule(AddToColumns)
def lower_add_to_columns(low: Lowering, node: AddToColumns) -> None:
    y = low.read(node.y)
    x, out = low.make_from(node.x, node)
    low.add_rows(
        "add_to_columns",
        stream_records.ADD_TO_COLUMNS,
        x,
        [x, y],
        [out],
        x=x,
        y=y,
        y_stride=y.stride,
        n_cols=y.width,
        first=node.first,
        times=(x.width - node.first) // y.width,
        out=out,
    )


@rule(MatchSize)
def lower_match_size(low: Lowering, node: MatchSize) -> None:
    like = low.read(node.like)
    x, out = low.make_from(node.x, node)
    fields = {"x": x, "like": like, "n_cols": x.width, "least": node.least, "out": out}
    low.add_rows("match_size", stream_records.MATCH_SIZE, x, [x, like], [out], **fields)


@rule(KeepLarge)
def lower_keep_large(low: Lowering, node: KeepLarge) -> None:
    x, out = low.make_from(node.x, node)
    fields = {"x": x, "n_cols": x.width, "deviations": node.deviations, "out": out}
    low.add_rows("keep_large", stream_records.KEEP_LARGE, x, [x], [out], **fields)
