"""Collecting an importance matrix, against hooks on transformers' linear layers with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import edgellm
from edgellm.convert.imatrix import collect_imatrix
from edgellm.errors import FileProblem, UsageError
from edgellm.evaluate.windows import windows
from edgellm.formats.imatrix import read_imatrix, write_imatrix
from tests.arch import tiny

N_CTX = 48
HEAD = {"output.weight"}
LINEARS = {
    f"blk.{layer}.{part}.weight"
    for layer in range(2)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
}
# Activations as transformers computes them in float32, up to orders of summation and a few per mille where keys and
# values were rounded to float16 the other way.
SAME_WEIGHTS = 2e-3
# A weight's inputs were made by linears whose own inputs were rounded to int8 (1/250 of the largest of 32).
INT8_INPUTS = 0.08
# On average over a tensor's columns, such roundings mostly cancel.
INT8_INPUTS_ON_AVERAGE = 0.01


@pytest.fixture(scope="module")
def ids() -> list[int]:
    """Two windows and a part of a third."""
    return [tiny.BOS, *np.random.default_rng(7).integers(3, tiny.N_VOCAB, 2 * N_CTX + 20).tolist()]


def hooked(checkpoint: tiny.Checkpoint, parts: list[list[int]]) -> dict[str, np.ndarray]:
    """Mean squares of every linear's inputs over some windows, by GGUF's names."""
    sums: dict[str, np.ndarray] = {}

    def hook(name: str):
        def add(module, inputs) -> None:
            squares = inputs[0].detach().double().square().sum(dim=(0, 1)).numpy()
            sums[name] = sums.get(name, 0) + squares

        return add

    linears = {
        f"model.layers.{i}.{theirs}": f"blk.{i}.{ours}" for i in range(8) for ours, theirs in tiny._LAYER.items()
    }
    linears["lm_head"] = "output"
    handles = [
        module.register_forward_pre_hook(hook(f"{linears[name]}.weight"))
        for name, module in checkpoint.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        for part in parts:
            checkpoint.logits(part)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / sum(map(len, parts)) for name, total in sums.items()}


def with_weights(checkpoint: tiny.Checkpoint, path: Path) -> tiny.Checkpoint:
    """The checkpoint with what its matrices became in a file (all but the rows of q and k, whose order differs)."""
    from edgellm.formats.gguf import GGUFFile

    state = checkpoint.model.state_dict()
    with GGUFFile.open(path) as file, torch.no_grad():
        for i in range(2):
            for ours, theirs in tiny._LAYER.items():
                weight = file.tensors[f"blk.{i}.{ours}.weight"].dequantize()
                if ours in ("attn_q", "attn_k"):
                    n_heads = len(weight) // 16
                    weight = weight.reshape(n_heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
                state[f"model.layers.{i}.{theirs}.weight"].copy_(torch.from_numpy(weight))
        state["model.embed_tokens.weight"].copy_(torch.from_numpy(file.tensors["token_embd.weight"].dequantize()))
    return checkpoint


def collected(path: Path, ids: list[int], **settings):
    with edgellm.load(path, n_ctx=N_CTX) as model:
        return collect_imatrix(model, ids, N_CTX, **settings), windows(model.tokenizer, ids, N_CTX)


@pytest.mark.parametrize("format_name", ["F32", "Q8_0", "Q4_0"])
def test_as_hooks_on_transformers_see_it(ids, format_name: str, tmp_path) -> None:
    checkpoint = tiny.llama()
    path = checkpoint.save(tmp_path / "tiny.gguf", format_name)
    found, parts = collected(path, ids, with_head=True)
    expected = hooked(with_weights(checkpoint, path), parts)
    assert set(found.tensors) == set(expected) == LINEARS | HEAD
    for name, mean in found.tensors.items():
        assert mean.dtype == np.float32
        if format_name == "F32":
            np.testing.assert_allclose(mean, expected[name], rtol=SAME_WEIGHTS, err_msg=name)
        np.testing.assert_allclose(mean, expected[name], rtol=INT8_INPUTS, atol=0.01 * expected[name].mean())
        assert mean.mean() == pytest.approx(expected[name].mean(), rel=INT8_INPUTS_ON_AVERAGE)
        assert found.counts[name].tolist() == [2 * N_CTX]
    assert (found.n_chunks, found.chunk_size) == (2, N_CTX)


def test_a_family_with_a_tied_head_and_other_norms(gemma3, ids, tmp_path) -> None:
    path = gemma3.save(tmp_path / "tiny.gguf")
    found, parts = collected(path, ids, with_head=True)
    expected = hooked(gemma3, parts)
    expected["token_embd.weight"] = expected.pop("output.weight")
    assert set(found.tensors) == set(expected)
    for name, mean in found.tensors.items():
        np.testing.assert_allclose(mean, expected[name], rtol=SAME_WEIGHTS, atol=1e-7, err_msg=name)


@pytest.fixture(scope="module")
def gemma3() -> tiny.Checkpoint:
    return tiny.gemma3()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tiny.llama().save(tmp_path_factory.mktemp("models") / "tiny.gguf", "Q8_0")


def test_the_head_only_when_asked_and_only_as_many_windows_as_asked(path, ids) -> None:
    calls = []
    found, _ = collected(path, ids, progress=lambda *call: calls.append(call))
    assert set(found.tensors) == LINEARS
    assert calls == [(0, 2, None), (1, 2, None), (2, 2, None)]
    first, _ = collected(path, ids, n_windows=1)
    assert first.n_chunks == 1
    assert first.counts["blk.0.attn_q.weight"].tolist() == [N_CTX]


def test_what_a_model_has_read_before_does_not_count(path, ids) -> None:
    with edgellm.load(path, n_ctx=N_CTX) as model:
        first = collect_imatrix(model, ids, N_CTX)
        again = collect_imatrix(model, ids, N_CTX)
    for name, mean in first.tensors.items():
        np.testing.assert_allclose(again.tensors[name], mean, rtol=1e-6)


def test_into_a_file_and_back(path, ids, tmp_path) -> None:
    found, _ = collected(path, ids, datasets=["some.txt"])
    write_imatrix(tmp_path / "found.gguf", found)
    back = read_imatrix(tmp_path / "found.gguf")
    assert (back.n_chunks, back.chunk_size, back.datasets) == (2, N_CTX, ("some.txt",))
    for name, mean in found.tensors.items():
        np.testing.assert_allclose(back.tensors[name], mean, rtol=3e-7)  # a sum and a quotient, rounded


def test_refusals(path, ids, tmp_path) -> None:
    with pytest.raises(UsageError, match="the text has 30 tokens and one window needs 48"):
        collected(path, ids[:30])
    checkpoint = tiny.llama()
    checkpoint.tensors["blk.1.attn_norm.weight"][5] = np.inf
    damaged = checkpoint.save(tmp_path / "bad.gguf")
    with pytest.raises(FileProblem, match=r"bad\.gguf: what tensor 'blk\.1\.attn_q\.weight' is given is not finite"):
        collected(damaged, ids)
