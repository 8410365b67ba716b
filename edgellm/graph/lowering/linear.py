"""The rule of linear layers: with inputs rounded to int8 where weights are quantized too, or all in float32."""

from __future__ import annotations

from functools import cache
from typing import Any

from edgellm.formats.tensor import Tensor
from edgellm.graph.lowering.base import Lowering, rule
from edgellm.graph.nodes import Linear
from edgellm.graph.ops import Chunks, Columns, Quantized, Rows, Tiled
from edgellm.kernels import gradient_records, records
from edgellm.kernels.isa.amx import has_amx
from edgellm.kernels.records import F32_TILE_COLS, PREFETCHES, TILE_ROWS
from edgellm.quants.floats import FloatFormat

TURNS = 2  # chunks for each thread, at least: one that starts late still gets its share
MORE_TURNS = 2  # than the tuning says, at most, where the threads' shares are more alike then
HALF_BLOCKS_AHEAD = 7  # of tiles, at least: within a block they are not read strictly in order
ROWS_TOGETHER = 16  # kernels for small batches advance by 4, 8 or 16 rows: chunks are multiples of all


@rule(Linear)
def lower_linear(low: Lowering, node: Linear) -> None:
    x, out = low.read(node.x), low.make(node)
    weight = node.weight
    n_cols = weight.shape[-1]
    row_bytes = weight.format.row_bytes(n_cols)
    fields = {
        "weights": weight,
        "row_bytes": row_bytes,
        "n_rows": out.width,
        "n_cols": n_cols,
        "x_stride": x.stride,
        "out": out,
        "out_stride": out.stride,
        "n_threads": low.target.tuning.n_threads,
    }
    if isinstance(weight.format, FloatFormat):
        fields |= prefetching(low, weight, ROWS_TOGETHER, out.width)
        _add_f32(low, weight, x, out, fields, small="linear_f32_decode")
    elif low.target.activations == "f32":
        _add_f32(low, weight, x, out, fields)
    elif low.target.activations == "bf16" and not node.sensitive:
        _add_bf16(low, weight, low.halves(node.x), out, fields)
    else:
        add_int8(low, weight, low.quantized(node.x, 2 if node.sensitive else 1, weight.format), out, fields)


def add_int8(low: Lowering, weight: Tensor, xq: Quantized, out: Rows, fields: dict[str, Any]) -> None:
    n_rows, n_cols = out.width, weight.shape[-1]
    n_planes = xq.n_planes
    n_groups = -(-n_cols // weight.format.scale_group)
    tiles, tile_bytes = low.target.tiles.get(weight), TILE_ROWS * (n_cols + 8 * n_groups)
    large_rows = TILE_ROWS * low.target.isa.tiles_together
    if tiles is None:
        large, small, rows_together = "linear_prefill", "linear_decode", low.target.isa.lanes
    else:
        large, small, rows_together = "linear_tiles_prefill", "linear_tiles", TILE_ROWS
        fields["weights"] = Tiled(weight, tiles)
    if weight.format.scale_group == 32 and has_amx(low.target.isa):  # see ops/linear_amx.py
        large, large_rows = "linear_amx" if tiles is None else "linear_tiles_amx", TILE_ROWS
        scratch = tile_bytes + records.AMX_CONFIG_BYTES + records.AMX_SUMS_BYTES
    else:
        scratch = large_rows // TILE_ROWS * tile_bytes
    fields |= prefetching(low, weight, rows_together, n_rows, tiles is not None)
    low.add(
        large,
        records.LINEAR,
        Chunks("tokens", 1 << 30, -(-n_rows // large_rows), small_batch=-(-n_rows // fields["chunk_rows"])),
        [xq],
        [out],
        format=weight.format,
        options={"n_planes": n_planes},
        small=small,
        split=Columns(out, large_rows, fields["chunk_rows"]),
        scratch=scratch,
        xq=xq,
        **fields,
    )


def _add_f32(
    low: Lowering, weight: Tensor, x: Rows, out: Rows, fields: dict[str, Any], small: str | None = None
) -> None:
    n_rows = out.width
    tile_rows = low.target.isa.f32_tile_rows
    small_batch = -(-n_rows // fields["chunk_rows"]) if small else None
    low.add(
        "linear_f32",
        records.LINEAR,
        Chunks("tokens", 1 << 30, -(-n_rows // tile_rows), small_batch),
        [x],
        [out],
        format=weight.format,
        small=small,
        split=Columns(out, tile_rows, fields["chunk_rows"] if small else tile_rows),
        scratch=4 * tile_rows * F32_TILE_COLS,
        x=x,
        **fields,
    )


def _add_bf16(low: Lowering, weight: Tensor, x: Rows, out: Rows, fields: dict[str, Any]) -> None:
    low.add(
        "linear_bf16",
        records.LINEAR,
        Chunks("tokens", 1 << 30, -(-weight.shape[0] // gradient_records.AMX_ROWS)),
        [x],
        [out],
        format=weight.format,
        split=Columns(out, gradient_records.AMX_ROWS, gradient_records.AMX_ROWS),
        scratch=gradient_records.AMX_SCRATCH_BYTES,
        **{**fields, "x": x, "x_stride": x.stride},
    )


def prefetching(
    low: Lowering, weight: Tensor, rows_together: int, n_rows: int, in_tiles: bool = False
) -> dict[str, int]:
    """How many of n_rows a thread takes at a time in a small batch, and what it prefetches how far ahead."""
    tuning = low.target.tuning
    row_bytes = weight.format.row_bytes(weight.shape[-1])
    turns = max(TURNS, round(n_rows * row_bytes / (tuning.n_threads * tuning.chunk_bytes)))
    if in_tiles:
        ahead = max(tuning.tiles_prefetch_bytes, HALF_BLOCKS_AHEAD * TILE_ROWS * weight.format.block_bytes // 2)
    else:
        ahead = rows_together * row_bytes + tuning.prefetch_bytes
    return {
        "chunk_rows": even_chunk_rows(n_rows, turns, tuning.n_threads),
        "prefetch": PREFETCHES.index(low.target.tiles_prefetch) if in_tiles else 0,
        "prefetch_distance": ahead,
    }


@cache
def even_chunk_rows(n_rows: int, turns: int, n_threads: int) -> int:
    """Rows of a chunk, for about so many chunks for each thread: those that leave the least to the thread with most."""

    def first_share(chunk_rows: int) -> int:
        """Rows of the first thread: no other has more."""
        return min(n_rows, -(-n_rows // (chunk_rows * n_threads)) * chunk_rows)

    some = range(turns, turns + MORE_TURNS + 1)
    return min((-(-n_rows // (n * n_threads * ROWS_TOGETHER)) * ROWS_TOGETHER for n in some), key=first_share)
