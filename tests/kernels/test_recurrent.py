"""Layers that keep a state: each kernel against its twin, however a text is cut into tasks and whatever lies beside."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgellm.kernels import recurrent_records as kinds
from edgellm.kernels import reference_recurrent as reference
from edgellm.kernels.reference import glu
from edgellm.kernels.schema import Schema

from .compiled import Compiled, Output, Scratch, rows

# Sums of some tens of float32 products, over some tens of tokens.
FLOAT32 = 2e-5
N_SLOTS = 6
# Two texts: the tokens of each task, and the slots before and after them.
TASKS = [[(3, -1, 0), (1, 0, 2), (5, 2, 1)], [(6, 4, 3)]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(9)


def tables(tasks: list[list[tuple[int, int, int]]]) -> tuple[np.ndarray, np.ndarray]:
    texts, rows_of = kinds.STATE_TEXT.new(len(tasks)), kinds.STATE_TASK.new(sum(map(len, tasks)))
    token = n = 0
    for index, text in enumerate(tasks):
        texts[index] = (n, len(text))
        for n_tokens, source, target in text:
            rows_of[n] = (token, n_tokens, source, target)
            token, n = token + n_tokens, n + 1
    return texts, rows_of


def run(
    compiled: Compiled, op: str, schema: Schema, tasks: list[list[tuple[int, int, int]]], n_chunks: int, **fields: Any
) -> None:
    texts, of_texts = tables(tasks)
    n_tokens = sum(n for text in tasks for n, _, _ in text)
    compiled._run(op, schema, n_chunks * len(tasks), n_tokens, texts=texts, tasks=of_texts, **fields)


def check_states(states: np.ndarray, before: np.ndarray, wanted: dict[int, np.ndarray], size: int) -> None:
    """What tasks go to is what it should be; everything else is as it was."""
    for slot in range(N_SLOTS):
        if slot in wanted:
            np.testing.assert_allclose(states[slot, :size], wanted[slot].reshape(-1), atol=FLOAT32, rtol=FLOAT32)
        else:
            np.testing.assert_array_equal(states[slot, :size], before[slot, :size])
    np.testing.assert_array_equal(states[:, size:], before[:, size:])


@pytest.mark.parametrize(("n_cols", "n_taps"), [(16, 3), (300, 4), (7, 2)])
def test_causal_conv(compiled: Compiled, rng, n_cols: int, n_taps: int) -> None:
    def convolved(tasks):
        out, after = Output(len(x), n_cols), states.copy()
        run(
            compiled, "causal_conv", kinds.CAUSAL_CONV, tasks, -(-n_cols // kinds.CONV_COLS), states=after,
            state_bytes=after.strides[0], x=x_rows, stride=out.stride, weight=weight, n_taps=n_taps, n_cols=n_cols,
            out=out, n_parts=-(-n_cols // kinds.CONV_COLS),
        )  # fmt: skip
        return out.take(), after

    x, weight = rng.standard_normal((15, n_cols), np.float32), rng.standard_normal((n_taps, n_cols), np.float32)
    x_rows, size = rows(x), (n_taps - 1) * n_cols
    states = rng.standard_normal((N_SLOTS, size + 16), np.float32)
    found, after = convolved(TASKS)
    first, _ = reference.causal_conv(x[:9], weight, np.zeros((n_taps - 1, n_cols), np.float32))
    second, last = reference.causal_conv(x[9:], weight, states[4, :size].reshape(n_taps - 1, n_cols))
    np.testing.assert_allclose(found, np.concatenate([first, second]), atol=FLOAT32)
    wanted = {3: last}
    for n, slot in ((3, 0), (4, 2), (9, 1)):
        wanted[slot] = reference.causal_conv(x[:n], weight, np.zeros((n_taps - 1, n_cols), np.float32))[1]
    check_states(after, states, wanted, size)
    at_once, _ = convolved([[(9, -1, 0)], [(6, 4, 3)]])
    np.testing.assert_array_equal(at_once, found)


def blocks_of(value_dim: int) -> list[slice]:
    """The columns of a state that lie in one piece."""
    wide = value_dim // kinds.STATE_COLS * kinds.STATE_COLS
    starts = [*range(0, wide, kinds.STATE_COLS), *range(wide, value_dim, 16), value_dim]
    return [slice(a, b) for a, b in pairwise(starts)]


def in_blocks(state: np.ndarray) -> np.ndarray:
    """[n_heads, key_dim, value_dim] as kernels have it, flat."""
    return np.concatenate([head[:, part].reshape(-1) for head in state for part in blocks_of(state.shape[2])])


def in_rows(flat: np.ndarray, n_heads: int, key_dim: int, value_dim: int) -> np.ndarray:
    """The way back."""
    state, at = np.empty((n_heads, key_dim, value_dim), np.float32), 0
    for head in state:
        for part in blocks_of(value_dim):
            block = head[:, part]
            block[...] = flat[at : at + block.size].reshape(block.shape)
            at += block.size
    return state


@pytest.mark.parametrize(
    ("n_key_heads", "n_heads", "key_dim", "value_dim", "n_neighbours"),
    [(1, 1, 16, 16, 1), (2, 4, 25, 80, 1), (2, 2, 128, 128, 1), (2, 6, 25, 32, 3)],
)
def test_delta_rule(
    compiled: Compiled, rng, n_key_heads: int, n_heads: int, key_dim: int, value_dim: int, n_neighbours: int
) -> None:
    def ruled(tasks):
        out, after, scratch = Output(len(x), n_heads * value_dim), states.copy(), Scratch(2 * 4 * key_dim)
        run(
            compiled, "delta_rule", kinds.DELTA_RULE, tasks, n_heads, states=after, state_bytes=after.strides[0],
            x=x_rows, stride=x_rows.shape[1], decay=decay_rows, decay_stride=decay_rows.shape[1], beta=beta_rows,
            beta_stride=beta_rows.shape[1], rate=rate, bias=bias, n_key_heads=n_key_heads,
            n_neighbours=n_neighbours, n_heads=n_heads, key_dim=key_dim, value_dim=value_dim, epsilon=1e-6,
            scale=key_dim**-0.5, out=out, out_stride=out.stride, scratch=scratch, scratch_bytes=scratch.n_bytes,
        )  # fmt: skip
        scratch.check()
        return out.take(), after

    def expected(start: int, end: int, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part = slice(start, end)
        found = reference.delta_rule(
            x[part], decay[part], beta[part], rate, bias, in_rows(state, *shape), n_key_heads, 1e-6, n_neighbours
        )
        return found[0], in_blocks(found[1])

    x = rng.standard_normal((15, 2 * n_key_heads * key_dim + n_heads * value_dim), np.float32)
    decay, beta = (rng.standard_normal((15, n_heads), np.float32) * size for size in (8, 3))
    rate, bias = -np.exp(rng.standard_normal(n_heads, np.float32)), rng.standard_normal(n_heads, np.float32)
    x_rows, decay_rows, beta_rows = rows(x), rows(decay), rows(beta)
    shape, size = (n_heads, key_dim, value_dim), n_heads * key_dim * value_dim
    states = rng.standard_normal((N_SLOTS, size + 16), np.float32)
    found, after = ruled(TASKS)
    first, _ = expected(0, 9, np.zeros(size, np.float32))
    second, last = expected(9, 15, states[4, :size])
    np.testing.assert_allclose(found, np.concatenate([first, second]), atol=FLOAT32)
    wanted = {3: last} | {slot: expected(0, n, np.zeros(size, np.float32))[1] for n, slot in ((3, 0), (4, 2), (9, 1))}
    check_states(after, states, wanted, size)
    at_once, _ = ruled([[(9, -1, 0)], [(6, 4, 3)]])
    np.testing.assert_array_equal(at_once, found)


def test_damage_is_seen(compiled: Compiled, rng) -> None:
    """A decay that is no number makes all that follows none."""
    x, ones = rng.standard_normal((4, 48), np.float32), np.ones((4, 1), np.float32)
    decay = ones.copy()
    decay[1] = np.nan
    out, scratch, states = Output(4, 16), Scratch(2 * 4 * 16), np.zeros((2, 256), np.float32)
    x_rows, decay_rows, beta_rows = rows(x), rows(decay), rows(ones)
    run(
        compiled, "delta_rule", kinds.DELTA_RULE, [[(4, -1, 1)]], 1, states=states, state_bytes=1024, x=x_rows,
        stride=x_rows.shape[1], decay=decay_rows, decay_stride=16, beta=beta_rows, beta_stride=16, rate=-ones[0],
        bias=ones[0], n_key_heads=1, n_neighbours=1, n_heads=1, key_dim=16, value_dim=16, epsilon=1e-6, scale=0.25,
        out=out, out_stride=16, scratch=scratch, scratch_bytes=scratch.n_bytes,
    )  # fmt: skip
    assert np.isnan(out.take()).any(1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("gate", ["sigmoid", "linear"])
def test_gates(compiled: Compiled, rng, gate: Any) -> None:
    x, up = 5 * rng.standard_normal((3, 33), np.float32), rng.standard_normal((3, 33), np.float32)
    np.testing.assert_allclose(compiled.glu(x, up, gate), glu(x, up, gate), rtol=1e-5, atol=1e-6)
    x[1, 2] = np.nan
    assert np.isnan(compiled.glu(x, up, gate)).sum() == 1
