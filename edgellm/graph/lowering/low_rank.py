"""Rules of what adapters put beside a linear."""

from __future__ import annotations

from typing import Any

from edgellm.graph.lowering.base import Lowering, rule, tokens_per_chunk
from edgellm.graph.nodes.dropout import Dropout
from edgellm.graph.nodes.low_rank import AddScaled, Choose, MultiplyColumns, Narrow, Widen
from edgellm.graph.ops import Chunks, Columns, Op, Packed, Readers, Rows, Table
from edgellm.kernels import gradient_records, low_rank_records, records
from edgellm.kernels.registry import find
from edgellm.kernels.schema import Schema
from edgellm.quants.low_rank import BYTES, PIECE_ROWS, pack_a, pack_b

SMALL = {"small": True}
RANK_STEP = 4  # rows of a narrow matrix that the kernel takes together, at least


@rule(Narrow)
def lower_narrow(low: Lowering, node: Narrow) -> None:
    x, out = low.read(node.x), low.make(node)
    is_int8 = node.weight.format.name == "F16" and node.x in low.int8_inputs
    if is_int8 and node.width <= low_rank_records.MOST_RANK:
        _add_narrow_int8(low, node, x)
        return
    n_threads, per_chunk = low.target.tuning.n_threads, tokens_per_chunk(x.width)
    low.add(
        "narrow",
        low_rank_records.NARROW,
        Chunks("tokens", per_chunk, small_batch=n_threads),
        [x],
        [out],
        small_options=SMALL,
        split=Readers(x),
        x=x,
        stride=x.stride,
        n_cols=x.width,
        format=node.weight.format,
        weight=node.weight,
        rank=out.width,
        scale=node.scale,
        scales=_scales(node.scales),
        out=out,
        out_stride=out.stride,
        chunk_tokens=per_chunk,
        chunk_rank=-(-out.width // (n_threads * RANK_STEP)) * RANK_STEP,
    )


@rule(Widen)
def lower_widen(low: Lowering, node: Widen) -> None:
    h = low.read(node.h)
    y, out = low.make_from(node.y, node)
    if node.h in low.narrowed:
        _add_widen_int8(low, node, y, out)
        return
    fields: dict[str, Any] = {
        "format": node.weight.format,
        "y": y,
        "out": out,
        "n_cols": y.width,
        "h": h,
        "h_stride": h.stride,
        "weight": node.weight,
        "rank": h.width,
        "scale": node.scale,
        "scales": _scales(node.scales),
    }
    _add_to_product(low, "widen", low_rank_records.WIDEN, y, h, out, y.width, fields, asking="ask_for_widen")


def _add_to_product(
    low: Lowering,
    op: str,
    schema: Schema,
    y: Rows,
    h: Rows,
    out: Rows,
    n_cols: int,
    fields: dict[str, Any],
    asking: str | None = None,
) -> Op | None:
    """An op that adds to y what is made of h: in chunks as those of the product y, of which it can then be a part.

    Returns the op of that product. Where y is none, the op is one by rows, of n_cols columns, and this returns None.
    """
    maker = low.maker_of(y)
    if maker is None or not isinstance(maker.split, Columns):
        low.add_rows(op, schema, y, [y, h], [out], chunk_cols=n_cols, **fields)
        return None
    low.add(
        op,
        schema,
        maker.chunks,
        [y, h],
        [out],
        small_options=SMALL,
        split=maker.split,
        asking=asking,
        stride=y.stride,
        chunk_tokens=1 << 30,
        chunk_cols=maker.split.width,
        small_chunk_cols=maker.split.small_width,
        **fields,
    )
    return maker


def _add_narrow_int8(low: Lowering, node: Narrow, x: Rows) -> None:
    """Beside quantized weights, whose int8 inputs are there. By rows: who makes an input narrows it too.

    The matrices that an adapter is run with are float16, those that are trained are not.
    """
    array, factor = pack_a(node.weight.dequantize())
    n_pieces = array.shape[0]
    xq, out = low.quantized(node.x, 1, BYTES), Rows(low_rank_records.NARROWED_AT // 4 + n_pieces * PIECE_ROWS)
    low.narrowed[low.graph.made_by(node)] = out
    low.add_rows(
        "narrow_int8",
        low_rank_records.NARROW_INT8,
        x,
        [xq],
        [out],
        xq=xq,
        n_cols=x.width,
        weight=Packed(array),
        n_pieces=n_pieces,
        piece_bytes=array.shape[1],
        rank=node.width,
        scale=node.scale * factor,
        scales=_scales(node.scales),
        out=out,
        out_stride=out.stride,
    )
    quantize = low.maker_of(xq)
    assert quantize is not None
    _join_narrow(quantize, low.ops[-1])


def _join_narrow(quantize: Op, narrow: Op) -> None:
    """In a small batch, have the kernel that makes the int8 of an input narrow it too."""
    quantize.small_kernel = find("quantize_adapted")
    quantize.writes.append(narrow.fields["out"])
    last, name = quantize, "beside"
    while name in last.fields:
        last, name = last.fields[name], "next"
    last.fields[name] = narrow
    narrow.is_only_large = True


def _add_widen_int8(low: Lowering, node: Widen, y: Rows, out: Rows) -> None:
    array, factor = pack_b(node.weight.dequantize())
    h, rank = low.narrowed[node.h], node.weight.shape[0]
    fields: dict[str, Any] = {
        "y": y,
        "out": out,
        "n_cols": y.width,
        "h": h,
        "h_stride": h.stride,
        "weight": Packed(array),
        "n_pieces": -(-rank // PIECE_ROWS),
        "tile_bytes": array.shape[1],
        "rank": rank,
        "scale": node.scale * factor,
        "scales": _scales(node.scales),
    }
    product = _add_to_product(low, "widen_int8", low_rank_records.WIDEN_INT8, y, h, out, y.stride, fields)
    small = product.small_kernel if product else None
    if product and out is y and small and small.op == "linear_tiles":
        _join_widen(product, low.ops[-1])


def _join_widen(linear: Op, widen: Op) -> None:
    """In a small batch, have the kernel of a product add to it what is beside it."""
    linear.small_kernel = find("linear_tiles_adapted", linear.kernel.format)
    linear.fields["beside"] = widen
    linear.reads.append(widen.fields["h"])
    widen.is_only_large = True


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
