"""Rules of nodes that treat every row by itself."""

from __future__ import annotations

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.formats.tensor import Tensor
from edgellm.graph.lowering.base import POSITIONS, TOKEN_IDS, Lowering, rotation_table, rule
from edgellm.graph.nodes import (
    GLU,
    Activate,
    Add,
    AddBias,
    Embed,
    EmbedPosition,
    LayerNorm,
    Maxima,
    ReplaceRows,
    RMSNorm,
    Rope,
    SelectRows,
)
from edgellm.graph.ops import Chunks, Rows, Table
from edgellm.kernels import records
from edgellm.kernels.records import MAXIMA_GROUP

MAXIMA_PER_CHUNK = 512  # groups of numbers


@rule(Embed)
def lower_embed(low: Lowering, node: Embed) -> None:
    _embed(low, low.make(node), node.weight, TOKEN_IDS, node.scale)


@rule(EmbedPosition)
def lower_embed_position(low: Lowering, node: EmbedPosition) -> None:
    _embed(low, low.make(node), node.weight, POSITIONS, 1.0)


def _embed(low: Lowering, out: Rows, weight: Tensor, ids: Table, scale: float) -> None:
    low.add(
        "embed",
        records.EMBED,
        Chunks("tokens"),
        [],
        [out],
        format=weight.format,
        ids=ids,
        weights=weight,
        row_bytes=weight.format.row_bytes(weight.shape[1]),
        n_cols=weight.shape[1],
        scale=scale,
        out=out,
        stride=out.stride,
    )


@rule(RMSNorm)
def lower_rms_norm(low: Lowering, node: RMSNorm) -> None:
    x, out = low.read(node.x), low.make(node)
    low.add_rows(
        "rms_norm",
        records.RMS_NORM,
        x,
        [x],
        [out],
        x=x,
        weight=low.floats(node.weight),
        out=out,
        out_stride=out.stride,
        n_groups=node.n_heads,
        n_cols=x.width // node.n_heads,
        epsilon=node.epsilon,
    )


@rule(LayerNorm)
def lower_layer_norm(low: Lowering, node: LayerNorm) -> None:
    x, out = low.read(node.x), low.make(node)
    n_cols = x.width // node.n_heads
    low.add_rows(
        "layer_norm",
        records.LAYER_NORM,
        x,
        [x],
        [out],
        x=x,
        weight=low.floats(node.weight),
        bias=np.zeros(node.weight.shape, np.float32) if node.bias is None else low.floats(node.bias),
        weight_step=n_cols if len(node.weight.shape) == 2 else 0,
        out=out,
        out_stride=out.stride,
        n_groups=node.n_heads,
        n_cols=n_cols,
        epsilon=node.epsilon,
    )


@rule(Add)
def lower_add(low: Lowering, node: Add) -> None:
    a, b, out = low.read(node.a), low.read(node.b), low.make(node)
    low.add_rows("add", records.ADD, a, [a, b], [out], a=a, b=b, out=out)


@rule(AddBias)
def lower_add_bias(low: Lowering, node: AddBias) -> None:
    add_bias_to(low, *low.make_from(node.x, node), low.floats(node.bias))


def add_bias_to(low: Lowering, x: Rows, out: Rows, bias: Tensor | np.ndarray) -> None:
    """out = x + bias, float32 [width]; out may be x itself."""
    low.add_rows("add_bias", records.ADD_BIAS, x, [x], [out], x=x, bias=bias, out=out, n_cols=x.width)


@rule(GLU)
def lower_glu(low: Lowering, node: GLU) -> None:
    gate, up, out = low.read(node.gate), low.read(node.up), low.make(node)
    options = {"activation": node.activation}
    low.add_rows("glu", records.GLU, gate, [gate, up], [out], options=options, gate=gate, up=up, out=out)


@rule(Activate)
def lower_activate(low: Lowering, node: Activate) -> None:
    x, out = low.make_from(node.x, node)
    low.add_rows("activate", records.ACTIVATE, x, [x], [out], options={"activation": node.activation}, x=x, out=out)


@rule(Rope)
def lower_rope(low: Lowering, node: Rope) -> None:
    rotation = node.rotation
    x, out = low.make_from(node.x, node)
    n_rot = 2 * len(rotation.frequencies)
    low.add_rows(
        "rope",
        records.ROPE,
        x,
        [x],
        [out],
        options={"inverse": node.inverse},
        x=x,
        out=out,
        n_heads=node.n_heads,
        head_dim=x.width // node.n_heads,
        n_rot=n_rot,
        pair_step=1 if rotation.interleaved else n_rot // 2,
        table=rotation_table(low.rotations.index(rotation)),
        positions=POSITIONS,
    )


@rule(ReplaceRows)
def lower_replace_rows(low: Lowering, node: ReplaceRows) -> None:
    x, out = low.make_from(node.x, node)
    table = 0 if node.table is None else low.floats(node.table)
    places = Table(node.places)
    low.add_rows(
        "replace_rows", records.REPLACE_ROWS, x, [x], [out], x=x, out=out, n_cols=x.width, table=table, places=places
    )


@rule(SelectRows)
def lower_select_rows(low: Lowering, node: SelectRows) -> None:
    x, out = low.read(node.x), low.make(node)
    low.add("select_rows", records.SELECT_ROWS, Chunks("tokens"), [x], [out], x=x, out=out, stride=x.stride)


@rule(Maxima)
def lower_maxima(low: Lowering, node: Maxima) -> None:
    if node.group != MAXIMA_GROUP:
        raise UnsupportedError(f"maxima of every {node.group} numbers are not built, only of {MAXIMA_GROUP}")
    x, out = low.read(node.x), low.make(node)
    chunks_per_token = -(-out.width // MAXIMA_PER_CHUNK)
    low.add(
        "maxima",
        records.MAXIMA,
        Chunks("tokens", 1, chunks_per_token),
        [x],
        [out],
        x=x,
        stride=x.stride,
        n_cols=x.width,
        out=out,
        out_stride=out.stride,
        chunk_groups=MAXIMA_PER_CHUNK,
        chunks_per_token=chunks_per_token,
    )
