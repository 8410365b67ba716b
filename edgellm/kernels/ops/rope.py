"""Rotary position embeddings (Su et al., 2021): pairs of a head's dimensions turned by the position, or turned back."""

from __future__ import annotations

from functools import partial

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ROPE
from edgellm.kernels.staged import Value, Vocabulary, staged

PAIRS = 8  # turned together


def _turn(a: Value, b: Value, cosine: Value, sine: Value, inverse: bool) -> tuple[Value, Value]:
    if inverse:
        return a * cosine + b * sine, b * cosine - a * sine
    return a * cosine - b * sine, a * sine + b * cosine


def _turn_neighbours(v: Vocabulary, x: Value, out: Value, cosines: Value, sines: Value, n_pairs: Value, *,
                     inverse: bool) -> None:  # fmt: skip
    """Pairs (2i, 2i + 1)."""

    def turn(i: Value, n: int) -> None:
        pairs = v.f32(x + i * 8, 2 * n)
        a, b = (v.shuffle(pairs, pairs, range(side, 2 * n, 2)) for side in range(2))
        c, s = v.f32(cosines + i * 4, n), v.f32(sines + i * 4, n)
        turned = v.concat(*_turn(a, b, c, s, inverse))
        v.store(out + i * 8, v.shuffle(turned, turned, [lane // 2 + n * (lane % 2) for lane in range(2 * n)]))

    v.elements(n_pairs, PAIRS, turn)


def _turn_halves(v: Vocabulary, x: Value, out: Value, cosines: Value, sines: Value, n_pairs: Value, *,
                 inverse: bool) -> None:  # fmt: skip
    """Pairs (i, i + n_pairs)."""

    def turn(i: Value, n: int) -> None:
        first, second = i * 4, (i + n_pairs) * 4
        a, b = v.f32(x + first, n), v.f32(x + second, n)
        c, s = v.f32(cosines + i * 4, n), v.f32(sines + i * 4, n)
        for at, turned in zip((first, second), _turn(a, b, c, s, inverse), strict=True):
            v.store(out + at, turned)

    v.elements(n_pairs, PAIRS, turn)


def _copy(v: Vocabulary, x: Value, out: Value, n: Value) -> None:
    """The dimensions that do not turn."""
    v.elements(n, PAIRS, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes)))


def build_rope(isa, inverse=False):
    """A pair is (2i, 2i + 1) or, as most Hugging Face models have it, (i, i + n_rot / 2); inverse: turned back."""
    op_at = record_viewer(ROPE)
    load_i32, load_i64 = memory(isa).load_i32, memory(isa).load_i64
    turn_neighbours = staged(isa, "void", *["i64"] * 5)(partial(_turn_neighbours, inverse=inverse))
    turn_halves = staged(isa, "void", *["i64"] * 5)(partial(_turn_halves, inverse=inverse))
    copy = staged(isa, "void", *["i64"] * 3)(_copy)

    def rope(record, chunk, thread):
        op = op_at(record)
        n_pairs = op.n_rot // 2
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            cosines = load_i64(op.table) + load_i32(op.positions + token * 4) * op.n_rot * 4
            sines = cosines + n_pairs * 4
            for head in range(op.n_heads):
                at = (token * op.stride + head * op.head_dim) * 4
                if op.pair_step == 1:
                    turn_neighbours(op.x + at, op.out + at, cosines, sines, n_pairs)
                else:
                    turn_halves(op.x + at, op.out + at, cosines, sines, n_pairs)
                if op.out != op.x:
                    copy(op.x + at + op.n_rot * 4, op.out + at + op.n_rot * 4, op.head_dim - op.n_rot)

    return rope
