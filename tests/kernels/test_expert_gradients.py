"""What goes backwards through mixtures of experts: kernels against their twins, for one token and for many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.kernels import expert_gradient_records as records
from edgellm.kernels import reference_expert_gradients as twins
from edgellm.kernels.records import F32_TILE_COLS, ROW_ALIGN
from edgellm.quants import FORMATS

from .compiled import Compiled, Output, Scratch, before_a_wall, rows
from .compiled_experts import sort_experts
from .test_experts import ROUTINGS, experts_of

SUM = 2e-6  # of products of numbers near 1 in float32, beside the root of how many they are
SHAPES = [(1, 8, 2, 40, 64), (5, 4, 4, 17, 300), (150, 3, 2, 130, 33)]  # tokens, experts, used, rows, columns


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(12)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def of_chosen(chosen: np.ndarray, n_experts: int) -> dict[str, Any]:
    padded = rows(chosen.astype(np.float32))
    return {"chosen": padded, "chosen_stride": padded.shape[1], "n_experts": n_experts, "n_used": chosen.shape[1]}


def _before_a_wall(x: np.ndarray) -> np.ndarray:
    return before_a_wall(x.view(np.uint8)).view(np.float32)


@pytest.mark.parametrize("how", [{k: v for k, v in how.items() if "group" not in k and k != "n_ranked"}
                                 for how in ROUTINGS], ids=str)  # fmt: skip
@pytest.mark.parametrize("with_scales", [False, True])
def test_route_backward(compiled: Compiled, rng, how: dict[str, Any], with_scales: bool) -> None:
    for n_tokens, n_experts, n_used in [(1, 8, 2), (7, 40, 5)]:
        logits, dy = 2 * normal(rng, n_tokens, n_experts), normal(rng, n_tokens, n_used)
        scales = normal(rng, n_experts) if with_scales else None
        chosen = experts_of(n_tokens, n_experts, n_used, rng)
        out, source, gradient = Output(n_tokens, n_experts), rows(logits), rows(dy)
        scratch = Scratch(records.route_backward_scratch_bytes(n_experts, n_used))
        compiled._run(
            "route_backward", records.ROUTE_BACKWARD, -(-n_tokens // 2), n_tokens,
            options={"scoring": how.get("scoring", "softmax")}, logits=source, stride=source.shape[1],
            normalize=int(how.get("normalize", True)), scale=how.get("scale", 1.0),
            scales=0 if scales is None else scales, dy=gradient, dy_stride=gradient.shape[1], out=out, chunk_tokens=2,
            scratch=scratch, scratch_bytes=scratch.n_bytes, **of_chosen(chosen, n_experts),
        )  # fmt: skip
        scratch.check()
        want = twins.route_backward(logits, chosen, dy, scales=scales, **how)
        np.testing.assert_allclose(out.take(), want, rtol=1e-4, atol=1e-5)


def test_balance_gradient(compiled: Compiled, rng) -> None:
    for n_tokens, n_experts, n_used in [(1, 8, 2), (7, 40, 5), (300, 3, 1)]:
        logits, scale = 2 * normal(rng, n_tokens, n_experts), np.array([0.7], np.float32)
        chosen = experts_of(n_tokens, n_experts, n_used, rng)
        out, seen, source = Output(n_tokens, n_experts), _before_a_wall(normal(rng, 2, n_experts)), rows(logits)
        compiled._run(
            "balance_gradient", records.BALANCE_GRADIENT, 1, n_tokens, logits=source, stride=source.shape[1],
            scale=scale, seen=seen, out=out, **of_chosen(chosen, n_experts),
        )  # fmt: skip
        gradient, found = twins.balance_gradient(logits, chosen, 0.7)
        np.testing.assert_allclose(out.take(), gradient, rtol=1e-4, atol=1e-6 / n_tokens)
        np.testing.assert_allclose(seen, found, rtol=1e-5)


def test_sum_experts_backward(compiled: Compiled, rng) -> None:
    for n_tokens, n_used, n_cols in [(1, 1, 1), (5, 3, 33), (4, 2, 64)]:
        x, weights, dy = (
            normal(rng, n_tokens, n_used * n_cols),
            normal(rng, n_tokens, n_used),
            normal(rng, n_tokens, n_cols),
        )
        source, by, gradient = rows(x), rows(weights), rows(dy)
        d_x, d_weights = Output(*x.shape), Output(*weights.shape)
        compiled._run(
            "sum_experts_backward", records.SUM_EXPERTS_BACKWARD, -(-n_tokens // 2), n_tokens, x=source, d_x=d_x,
            stride=source.shape[1], weights=by, d_weights=d_weights, weights_stride=by.shape[1], n_used=n_used,
            n_cols=n_cols, dy=gradient, dy_stride=gradient.shape[1], chunk_tokens=2,
        )  # fmt: skip
        for got, want in zip((d_x, d_weights), twins.sum_experts_backward(x, weights, dy), strict=True):
            np.testing.assert_allclose(got.take(), want, rtol=1e-5, atol=SUM * np.sqrt(n_cols))


@pytest.mark.parametrize("is_one", [False, True])
def test_gate_backward(compiled: Compiled, rng, is_one: bool) -> None:
    for n_tokens, n_cols in [(1, 2), (5, 33), (4, 64)]:
        x, dy, gate = (
            normal(rng, n_tokens, n_cols),
            normal(rng, n_tokens, n_cols),
            normal(rng, n_tokens, 1 if is_one else n_cols),
        )
        source, gradient, by = rows(x), rows(dy), rows(gate)
        d_x, d_gate = Output(*x.shape), Output(*gate.shape)
        compiled._run(
            "gate_backward", records.GATE_BACKWARD, -(-n_tokens // 2), n_tokens, x=source, d_x=d_x, dy=gradient,
            stride=source.shape[1], n_cols=n_cols, gate=by, d_gate=d_gate, gate_stride=by.shape[1],
            is_one=int(is_one), chunk_tokens=2,
        )  # fmt: skip
        for got, want in zip((d_x, d_gate), twins.gate_backward(x, gate, dy), strict=True):
            np.testing.assert_allclose(got.take(), want, rtol=1e-5, atol=SUM * np.sqrt(n_cols))


@pytest.mark.parametrize("format_name", ["F32", "BF16", "Q8_0", "Q4_K", "MXFP4"])
def test_experts_transposed(compiled: Compiled, rng, format_name: str) -> None:
    fmt = FORMATS[format_name]
    for n_tokens, n_experts, n_used, n_rows, n_cols in SHAPES:
        n_cols = n_cols if fmt.block_size == 1 else -(-n_cols // fmt.block_size) * fmt.block_size
        raw = fmt.quantize(normal(rng, n_experts * n_rows, n_cols)).reshape(n_experts, n_rows, -1)
        weights = fmt.dequantize(raw.reshape(n_experts * n_rows, -1)).reshape(n_experts, n_rows, n_cols)
        chosen = experts_of(n_tokens, n_experts, n_used, rng)
        dy = normal(rng, n_tokens, n_used * n_rows)
        order, ends = sort_experts(compiled, chosen, n_experts)
        source, out = rows(dy), Output(n_tokens, n_used * n_cols)
        scratch = Scratch(records.EXPERTS_TRANSPOSED_SCRATCH_BYTES)
        compiled._run(
            "experts_transposed", records.EXPERTS_TRANSPOSED, n_experts * -(-n_cols // F32_TILE_COLS), n_tokens, fmt,
            weights=before_a_wall(raw), expert_bytes=raw[0].nbytes, row_bytes=raw.shape[2], n_rows=n_rows,
            n_cols=n_cols, n_experts=n_experts, n_used=n_used, order=order, ends=ends, x=source,
            x_stride=source.shape[1], out=out, out_stride=out.stride, scratch=scratch, scratch_bytes=scratch.n_bytes,
        )  # fmt: skip
        scratch.check()
        want = twins.experts_transposed(weights, dy, chosen)
        np.testing.assert_allclose(out.take(), want, rtol=0, atol=SUM * np.sqrt(n_rows) * np.abs(weights).max())


@pytest.mark.parametrize("by_pair", [False, True])
def test_sums_of_experts(compiled: Compiled, rng, by_pair: bool) -> None:
    for n_tokens, n_experts, n_used, n_rows, n_cols in SHAPES:
        chosen = experts_of(n_tokens, n_experts, n_used, rng)
        a = normal(rng, n_tokens, n_used * n_rows)
        b = normal(rng, n_tokens, (n_used if by_pair else 1) * n_cols)
        sums, bias_sums = normal(rng, n_experts, n_rows, n_cols), normal(rng, n_experts, n_rows)
        order, ends = sort_experts(compiled, chosen, n_experts)
        of_a, of_b, g = rows(a), rows(b), sums.copy()
        tiles = -(-n_rows // records.OUTER_ROWS) * -(-n_cols // records.OUTER_COLS)
        scratch = Scratch(records.EXPERT_OUTER_SCRATCH_BYTES)
        compiled._run(
            "expert_outer_sum", records.EXPERT_OUTER_SUM, n_experts * tiles, n_tokens, a=of_a, a_stride=of_a.shape[1],
            b=of_b, b_stride=of_b.shape[1], b_parts=n_used if by_pair else 1, g=g, n_rows=n_rows, n_cols=n_cols,
            n_experts=n_experts, n_used=n_used, order=order, ends=ends, scratch=scratch, scratch_bytes=scratch.n_bytes,
        )  # fmt: skip
        scratch.check()
        tolerance = 5 * SUM * np.sqrt(1 + n_tokens)
        np.testing.assert_allclose(g, twins.expert_outer_sum(sums, a, b, chosen), rtol=1e-5, atol=tolerance)
        unused = np.setdiff1d(np.arange(n_experts), chosen)
        np.testing.assert_array_equal(g[unused], sums[unused])

        found = bias_sums.copy()
        compiled._run(
            "expert_bias_sum", records.EXPERT_BIAS_SUM, -(-n_rows // ROW_ALIGN), n_tokens, x=of_a,
            stride=of_a.shape[1], n_cols=n_rows, sums=found, chunk_cols=ROW_ALIGN, **of_chosen(chosen, n_experts),
        )  # fmt: skip
        np.testing.assert_allclose(found, twins.expert_bias_sum(bias_sums, a, chosen), rtol=1e-5, atol=tolerance)
