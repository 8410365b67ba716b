"""The gradients of attention: the twin against torch, kernels against the twin, and the same bits from all chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from edgellm.kernels import records, reference_attention_backward
from edgellm.kernels.records import GRADIENT_TILE_TOKENS

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

    def twin(self, window: int | None = None, ahead: int | None = 0) -> tuple[np.ndarray, ...]:
        return reference_attention_backward.attention_backward(
            self.q, self.k, self.v, self.dout, self.lengths, self.scale, window, ahead
        )

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
        self, compiled: Compiled, window: int | None = None, ahead: int | None = 0, n_parts: int = 1
    ) -> tuple[np.ndarray, ...]:
        """From the kernel, in chunks for n_parts of each group."""
        n_tokens, n_heads, head_dim = self.q.shape
        n_kv_heads = self.k.shape[1]
        starts = np.cumsum((0, *self.lengths)).tolist()[:-1]
        q, k, v, dout = (rows(x) for x in (self.q, self.k, self.v, self.dout))
        dq = Output(n_tokens, n_heads * head_dim)
        dk, dv = (Output(n_tokens, n_kv_heads * n_parts * head_dim) for _ in range(2))
        window, ahead = (1 << 40 if limit is None else limit for limit in (window, ahead))
        scratch = Scratch(
            records.attention_backward_scratch_bytes(max(self.lengths, default=0), head_dim, window, ahead)
        )
        compiled._run(
            "attention_backward",
            records.ATTENTION_BACKWARD,
            len(self.lengths) * n_kv_heads * n_parts,
            n_tokens,
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
            documents=_table(records.DOCUMENT_TASK, list(zip(starts, self.lengths, strict=True))),
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
        records.SUM_HEADS,
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
