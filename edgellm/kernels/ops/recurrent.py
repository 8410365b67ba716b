"""Layers that keep a state of a text from one token to the next: see `reference_recurrent.py`.

All go token by token, in one order of summation: so a text has the same bits however it is cut.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.norm import inverse_size
from edgellm.kernels.ops.route import sigmoid
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.recurrent_records import (
    CAUSAL_CONV,
    CONV_COLS,
    DELTA_RULE,
    STATE_COLS,
    STATE_TASK,
    STATE_TEXT,
)
from edgellm.kernels.schema import WORD_BYTES
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged

_TEXT_BYTES, _TASK_BYTES = (len(schema.fields) * WORD_BYTES for schema in (STATE_TEXT, STATE_TASK))
LANES = ROW_ALIGN


def build_causal_conv(isa):
    """out = the last n_taps inputs of each column, by its taps; a chunk is some columns of a text."""
    op_at, text_at, task_at = (record_viewer(schema) for schema in (CAUSAL_CONV, STATE_TEXT, STATE_TASK))
    copy, clear = memory(isa).copy_f32, memory(isa).clear_f32

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def add_product(v, x, weight, out, n):
        def some(i: Value, lanes: int) -> None:
            total = v.f32(out + i * 4, lanes)
            v.store(out + i * 4, v.fma(v.f32(x + i * 4, lanes), v.f32(weight + i * 4, lanes), total))

        v.elements(n, ROW_ALIGN, some)

    def causal_conv(record, chunk, thread):
        op = op_at(record)
        text = text_at(op.texts + chunk // op.n_parts * _TEXT_BYTES)
        column = chunk % op.n_parts * CONV_COLS
        n = min(CONV_COLS, op.n_cols - column)
        n_kept = op.n_taps - 1
        for index in range(text.first_task, text.first_task + text.n_tasks):
            task = task_at(op.tasks + index * _TASK_BYTES)
            x = op.x + (task.token * op.stride + column) * 4
            before = op.states + task.source * op.state_bytes + column * 4
            after = op.states + task.target * op.state_bytes + column * 4
            for t in range(task.n_tokens):
                out = op.out + ((task.token + t) * op.stride + column) * 4
                clear(out, n)
                for tap in range(op.n_taps):
                    at = t + tap - n_kept
                    weight = op.weight + (tap * op.n_cols + column) * 4
                    if at >= 0:
                        add_product(x + at * op.stride * 4, weight, out, n)
                    elif task.source >= 0:
                        add_product(before + (n_kept + at) * op.n_cols * 4, weight, out, n)
            for row in range(n_kept):
                at = task.n_tokens + row - n_kept
                to = after + row * op.n_cols * 4
                if at >= 0:
                    copy(x + at * op.stride * 4, to, n)
                elif task.source >= 0:
                    copy(before + (n_kept + at) * op.n_cols * 4, to, n)
                else:
                    clear(to, n)

    return causal_conv


def _softplus(v: Vocabulary, x: Value) -> Value:
    """log(1 + e**x) = max(x, 0) + log(1 + u) with u = e**-|x|, which is 2 artanh(u / (2 + u)): a series that is off by
    3e-9 at most, for u / (2 + u) is at most a third.
    """
    u = v.exp(-v.abs(x))
    z = u / (u + 2.0)
    square = z * z
    series = v.constant(1 / 17, F32)
    for odd in (15, 13, 11, 9, 7, 5, 3, 1):
        series = v.fma(series, square, v.constant(1 / odd, F32))
    return v.maximum(x, 0.0) + z * series * 2.0


def _over_rows(v: Vocabulary, n: Value, n_parts: int, add: Callable[[Value, list[Value]], list[Value]]) -> list[Value]:
    """Sums of some registers over n rows: even and odd ones by themselves, so that fewer additions wait for others."""
    zeros = [v.constant(0.0, F32, LANES) for _ in range(n_parts)]

    def two(i: Value, *sums: Value) -> list[Value]:
        return [*add(i * 2, list(sums[:n_parts])), *add(i * 2 + 1, list(sums[n_parts:]))]

    sums = v.loop(n / 2, zeros * 2, two)
    sums[:n_parts] = v.loop(n & 1, sums[:n_parts], lambda _, *even: add(n - 1, list(even)))
    return [even + odd for even, odd in zip(sums[:n_parts], sums[n_parts:], strict=True)]


def _stepper(n_parts: int) -> Callable[..., None]:
    """A token in n_parts registers of columns of a state, [n_keys, n_parts * LANES]."""
    parts = [part * LANES * 4 for part in range(n_parts)]
    row_bytes = n_parts * LANES * 4

    def step(
        v: Vocabulary, state: Value, q: Value, k: Value, value: Value, out: Value, n_keys: Value, kept: Value,
        beta: Value,
    ) -> None:  # fmt: skip
        def find(i: Value, found: list[Value]) -> list[Value]:
            row, weight = state + i * row_bytes, v.f32(k + i * 4)
            return [v.fma(v.f32(row + at, LANES), weight, total) for at, total in zip(parts, found, strict=True)]

        found = _over_rows(v, n_keys, n_parts, find)
        missing = [(v.f32(value + at, LANES) - total * kept) * beta for at, total in zip(parts, found, strict=True)]

        def change(i: Value, found: list[Value]) -> list[Value]:
            row, weight, query = state + i * row_bytes, v.f32(k + i * 4), v.f32(q + i * 4)
            result = []
            for at, wanted, total in zip(parts, missing, found, strict=True):
                changed = v.fma(wanted, weight, v.f32(row + at, LANES) * kept)
                v.store(row + at, changed)
                result.append(v.fma(changed, query, total))
            return result

        for at, total in zip(parts, _over_rows(v, n_keys, n_parts, change), strict=True):
            v.store(out + at, total)

    return step


def build_delta_rule(isa):
    """The gated delta rule; a chunk is one head of a text."""
    op_at, text_at, task_at = (record_viewer(schema) for schema in (DELTA_RULE, STATE_TEXT, STATE_TASK))
    words = memory(isa)
    load, copy, clear = words.load_f32, words.copy_f32, words.clear_f32
    arguments = ("i64",) * 6 + ("f32", "f32")

    @staged(isa, "void", "i64", "i64", "i64", "f64", "f32")
    def normalize(v, x, out, n, epsilon, factor):
        """x / sqrt(sum(x**2) + epsilon) * factor"""
        size = v.constant(1.0, F64) / v.call("llvm.sqrt", F64, n.to(F64))
        scale = inverse_size(v, x, n, epsilon / n.to(F64)) * size.to(F32) * factor
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes) * scale))

    @staged(isa, "f32", "f32", "f32", "f32")
    def kept_of(v, x, bias, rate):
        return v.exp(_softplus(v, x + bias) * rate) + (x - x)  # `exp` makes 0 of NaN, and the damage must be seen

    @staged(isa, "f32", "f32")
    def beta_of(v, x):
        return sigmoid(v, x)

    wide, narrow = (staged(isa, "void", *arguments)(_stepper(n_parts)) for n_parts in (STATE_COLS // LANES, 1))

    def delta_rule(record, chunk, thread):
        op = op_at(record)
        text, head = text_at(op.texts + chunk // op.n_heads * _TEXT_BYTES), chunk % op.n_heads
        q = op.scratch + thread * op.scratch_bytes
        k = q + op.key_dim * 4
        key_head = head // op.n_neighbours % op.n_key_heads * op.key_dim
        n_state = op.key_dim * op.value_dim
        rate, bias = load(op.rate + head * 4), load(op.bias + head * 4)
        scale = np.float32(op.scale)
        for index in range(text.first_task, text.first_task + text.n_tasks):
            task = task_at(op.tasks + index * _TASK_BYTES)
            state = op.states + task.target * op.state_bytes + head * n_state * 4
            if task.source >= 0:
                copy(op.states + task.source * op.state_bytes + head * n_state * 4, state, n_state)
            else:
                clear(state, n_state)
            for column in range(0, op.value_dim, STATE_COLS):
                for token in range(task.token, task.token + task.n_tokens):
                    x = op.x + token * op.stride * 4
                    value = x + (2 * op.n_key_heads * op.key_dim + head * op.value_dim + column) * 4
                    out = op.out + (token * op.out_stride + head * op.value_dim + column) * 4
                    normalize(x + key_head * 4, q, op.key_dim, op.epsilon, scale)
                    normalize(
                        x + (op.n_key_heads * op.key_dim + key_head) * 4, k, op.key_dim, op.epsilon, np.float32(1)
                    )
                    kept = kept_of(load(op.decay + (token * op.decay_stride + head) * 4), bias, rate)
                    beta = beta_of(load(op.beta + (token * op.beta_stride + head) * 4))
                    # A block of columns lies in one piece: all of a first level cache serves it.
                    at = state + column * op.key_dim * 4
                    if column + STATE_COLS <= op.value_dim:
                        wide(at, q, k, value, out, op.key_dim, kept, beta)
                    else:
                        for part in range(0, op.value_dim - column, LANES):
                            narrow(
                                at + part * op.key_dim * 4, q, k, value + part * 4, out + part * 4, op.key_dim, kept,
                                beta,
                            )  # fmt: skip

    return delta_rule
