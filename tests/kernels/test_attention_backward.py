"""The gradients of attention: the twin against torch, kernels against the twin, and the same bits from all chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from edgellm.kernels import gradient_records, reference_attention_backward
from edgellm.kernels.gradient_records import GRADIENT_TILE_TOKENS

from .compiled import Compiled, Output, Scratch, _table, rows

TILE = GRADIENT_TILE_TOKENS
# Sums of up to 300 products in float32, of numbers of the size of the largest gradient.
GRADIENT = 5e-6

HEADS = [(16, 1, 1), (64, 3, 3), (80, 2, 2), (128, 1, 4), (256, 1, 2), (100, 2, 1), (1, 1, 2), (9, 2, 3), (23, 1, 1)]
LENGTHS = [(1,), (TILE,), (TILE + 1, 1, 2 * TILE - 1), (3, 70, 2), (130,)]
SIGHTS = [(None, 0), (1, 0), (5, 0), (TILE, 0), (40, 0), (None, None), (7, 6), (50, 90), (10_000, 10_000)]


@dataclass(frozen=True)
class Documents:
    """Random inputs of attention over some documents, and the gradients of its result."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    lengths: tuple[int, ...]
    scale: float

    @classmethod
    def new(cls, lengths: tuple[int, ...], head_dim: int, n_kv_heads: int, group: int, seed: int = 3) -> Documents:
        rng = np.random.default_rng(seed)
        q, k, v, dout = (
            rng.standard_normal((sum(lengths), n_kv_heads * of, head_dim), np.float32) for of in (group, 1, 1, group)
        )
        return cls(2 * q, k, v, dout, lengths, head_dim**-0.5)

    def twin(self, window: int | None = None, ahead: int | None = 0, **general: Any) -> tuple[np.ndarray, ...]:
        return reference_attention_backward.attention_backward(
            self.q, self.k, self.v, self.dout, self.lengths, self.scale, window, ahead, **general
        )

    def general(self, rng: np.random.Generator, cap: float) -> dict[str, Any]:
        """What the general form has beside, of every head."""
        biases, sinks = rng.random((2, self.q.shape[1]), np.float32)
        return {"cap": cap, "biases": biases, "sinks": sinks}

    def torch_general(self, window: int, cap: float, biases: np.ndarray, sinks: np.ndarray) -> tuple[np.ndarray, ...]:
        """What autograd has, written out."""
        leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (self.q, self.k, self.v)]
        group, start = self.q.shape[1] // self.k.shape[1], 0
        for length in self.lengths:
            q, k, v = (x[start : start + length].transpose(0, 1) for x in leaves)
            k, v = (x.repeat_interleave(group, 0) for x in (k, v))
            scores = q @ k.transpose(1, 2) * self.scale
            scores = torch.tanh(scores / cap) * cap if cap else scores
            back = torch.arange(length)[:, None] - torch.arange(length)
            scores = scores - back * torch.from_numpy(biases).double()[:, None, None]
            scores = scores.masked_fill((back < 0) | (back >= window), -torch.inf)
            column = torch.from_numpy(sinks).double()[:, None, None].expand(-1, length, 1)
            out = torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v
            out.transpose(0, 1).backward(torch.tensor(self.dout[start : start + length], dtype=torch.float64))
            start += length
        return tuple(x.grad.numpy() for x in leaves)

    def torch(self, window: int | None = None, ahead: int | None = 0) -> tuple[np.ndarray, ...]:
        """What autograd has, document by document, in float64."""
        leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (self.q, self.k, self.v)]
        start = 0
        for length in self.lengths:
            q, k, v = (x[start : start + length].transpose(0, 1) for x in leaves)
            back = torch.arange(length)[:, None] - torch.arange(length)
            seen = torch.ones_like(back, dtype=torch.bool)
            seen &= back < (length if window is None else window)
            seen &= back >= -(length if ahead is None else ahead)
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, scale=self.scale, enable_gqa=True
            )
            dout = torch.tensor(self.dout[start : start + length], dtype=torch.float64)
            out.transpose(0, 1).backward(dout)
            start += length
        return tuple(x.grad.numpy() for x in leaves)

    def gradients(
        self,
        compiled: Compiled,
        window: int | None = None,
        ahead: int | None = 0,
        n_parts: int = 1,
        **general: Any,
    ) -> tuple[np.ndarray, ...]:
        """From the kernel, in chunks for n_parts of each group."""
        is_general = bool(general)
        general = {"cap": 0.0, "biases": 0, "sinks": 0} | general
        n_tokens, n_heads, head_dim = self.q.shape
        n_kv_heads = self.k.shape[1]
        starts = np.cumsum((0, *self.lengths)).tolist()[:-1]
        q, k, v, dout = (rows(x) for x in (self.q, self.k, self.v, self.dout))
        dq = Output(n_tokens, n_heads * head_dim)
        dk, dv = (Output(n_tokens, n_kv_heads * n_parts * head_dim) for _ in range(2))
        window, ahead = (1 << 40 if limit is None else limit for limit in (window, ahead))
        scratch = Scratch(
            gradient_records.attention_backward_scratch_bytes(
                max(self.lengths, default=0), head_dim, window, ahead, is_general
            )
        )
        compiled._run(
            "attention_backward",
            gradient_records.ATTENTION_BACKWARD,
            len(self.lengths) * n_kv_heads * n_parts,
            n_tokens,
            options={"general": is_general},
            **general,
            q=q,
            dout=dout,
            dq=dq,
            q_stride=q.shape[1],
            k=k,
            v=v,
            kv_stride=k.shape[1],
            dk=dk,
            dv=dv,
            dkv_stride=dk.stride,
            n_kv_heads=n_kv_heads,
            group=n_heads // n_kv_heads,
            n_parts=n_parts,
            head_dim=head_dim,
            scale=self.scale,
            window=window,
            ahead=ahead,
            documents=_table(gradient_records.DOCUMENT_TASK, list(zip(starts, self.lengths, strict=True))),
            scratch=scratch,
            scratch_bytes=scratch.n_bytes,
        )
        scratch.check()
        sums = (sum_heads(compiled, x.take(), n_kv_heads, n_parts) if n_parts > 1 else x.take() for x in (dk, dv))
        return dq.take().reshape(self.q.shape), *(x.reshape(self.k.shape) for x in sums)


def sum_heads(compiled: Compiled, x: np.ndarray, n_heads: int, n_parts: int) -> np.ndarray:
    n_tokens, width = x.shape
    source, out = rows(x), Output(n_tokens, width // n_parts)
    compiled._run(
        "sum_heads",
        gradient_records.SUM_HEADS,
        -(-n_tokens // 2),
        n_tokens,
        x=source,
        stride=source.shape[1],
        n_heads=n_heads,
        n_parts=n_parts,
        head_dim=width // (n_heads * n_parts),
        out=out,
        out_stride=out.stride,
        chunk_tokens=2,
    )
    return out.take()


def assert_close(got: tuple[np.ndarray, ...], want: tuple[np.ndarray, ...], tolerance: float = GRADIENT) -> None:
    for ours, other in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max(initial=0)))


def same_bits(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("window", "ahead"), SIGHTS)
@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), [(16, 1, 1), (64, 3, 3), (5, 2, 4)])
def test_the_twin_has_the_gradients_of_torch(head_dim, n_kv_heads, group, window, ahead) -> None:
    documents = Documents.new((3, 70, 1), head_dim, n_kv_heads, group)
    assert_close(documents.twin(window, ahead), documents.torch(window, ahead), 2e-7)


@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_documents(compiled: Compiled, head_dim, n_kv_heads, group, lengths) -> None:
    documents = Documents.new(lengths, head_dim, n_kv_heads, group)
    assert_close(documents.gradients(compiled), documents.twin())


@pytest.mark.parametrize(("window", "ahead"), SIGHTS)
def test_what_a_token_sees(compiled: Compiled, window, ahead) -> None:
    documents = Documents.new((90, 1, 45), 20, 2, 2)
    assert_close(documents.gradients(compiled, window, ahead), documents.twin(window, ahead))


@pytest.mark.parametrize(("group", "n_parts"), [(4, 4), (6, 2), (6, 3), (1, 1)])
def test_a_group_in_parts(compiled: Compiled, group: int, n_parts: int) -> None:
    documents = Documents.new((40, 33), 24, 2, group)
    assert_close(documents.gradients(compiled, n_parts=n_parts), documents.twin())


@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_document_has_the_same_bits_wherever_it_stands(compiled: Compiled, n_parts: int) -> None:
    """Whatever is before and behind it, and whatever chunks were done before its own."""
    lengths = (50, 33, 64)
    together = Documents.new(lengths, 64, 2, 3)
    got = together.gradients(compiled, 40, n_parts=n_parts)
    for start, length in zip((0, 50, 83), lengths, strict=True):
        part = slice(start, start + length)
        alone = Documents(*(x[part] for x in (together.q, together.k, together.v, together.dout)), (length,),
                          together.scale)  # fmt: skip
        assert same_bits(alone.gradients(compiled, 40, n_parts=n_parts), tuple(x[part] for x in got))


def test_no_documents(compiled: Compiled) -> None:
    assert [x.shape for x in Documents.new((), 16, 1, 1).gradients(compiled)] == [(0, 1, 16)] * 3


def test_large_scores_do_not_overflow(compiled: Compiled) -> None:
    documents = Documents.new((100,), 64, 1, 2)
    documents.q[...] *= 1000
    assert_close(documents.gradients(compiled), documents.twin(), 1e-3)


def test_what_is_not_finite_is_seen(compiled: Compiled) -> None:
    """In its own document, and in no other."""
    documents = Documents.new((20, 40), 16, 1, 1)
    documents.v[30, 0, 3] = np.nan
    dq, dk, dv = documents.gradients(compiled)
    assert not np.isfinite(dq[30:]).any()
    assert np.isfinite(dq[:20]).all() and np.isfinite(dk[:20]).all() and np.isfinite(dv[:20]).all()


@pytest.mark.parametrize("n_parts", [1, 2, 5])
@pytest.mark.parametrize("head_dim", [1, 16, 33])
def test_sum_heads_is_exact(compiled: Compiled, n_parts: int, head_dim: int) -> None:
    for n_tokens in (0, 3):
        x = np.random.default_rng(1).standard_normal((n_tokens, 3 * n_parts * head_dim), np.float32)
        want = reference_attention_backward.sum_heads(x, 3, n_parts)
        np.testing.assert_array_equal(sum_heads(compiled, x, 3, n_parts), want)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("lengths", [(1,), (TILE + 1, 1, 70)])
def test_caps_biases_and_sinks(compiled: Compiled, lengths: tuple[int, ...], cap: float) -> None:
    documents = Documents.new(lengths, 24, 2, 3)
    general = documents.general(np.random.default_rng(2), cap)
    for window in (5, 40):
        want = documents.twin(window, **general)
        assert_close(want, documents.torch_general(window, **general), 1e-6)
        got = documents.gradients(compiled, window, **general)
        assert_close(got, want)
        assert_close(documents.gradients(compiled, window, n_parts=3, **general), want)


def test_the_general_form_of_plain_attention(compiled: Compiled) -> None:
    documents = Documents.new((TILE + 5, 3), 32, 2, 2)
    assert_close(documents.gradients(compiled, cap=0.0), documents.twin())
