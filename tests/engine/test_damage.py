"""Weights that are NaN or infinite: no answer is made of them, and the error names the tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.convert.imatrix import collect_imatrix
from edgellm.engine.damage import is_finite
from edgellm.errors import FileProblem
from edgellm.evaluate.scores import scored_rows
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS
from tests.arch import tiny

PROMPT = [1, 7, 8, 9] * 5
BAD = (np.nan, np.inf, -np.inf)
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 16, "num_hidden_layers": 1}


def spoilt(raw: np.ndarray, name: str, value: float, at: int) -> np.ndarray:
    """Rows of a format, with one of their floats, or of what stands for one, replaced."""
    layout = FORMATS[name].layout
    blocks = raw.reshape(-1).view(layout).copy()
    floats = [field for field in layout.names or () if layout[field].base.kind == "f"]
    block = at % len(blocks)
    if floats:
        blocks[floats[at % len(floats)]][block] = value
    elif name == "BF16":
        blocks["bits"][block] = np.float32(value).view(np.uint32) >> 16
    else:
        blocks["e"][block] = 255  # MXFP4
    return blocks.view(np.uint8).reshape(raw.shape)


def save(checkpoint: tiny.Checkpoint, path: Path, victims: dict[str, float], format_name: str = "F32") -> Path:
    """The checkpoint's file, with one weight (or scale) of each victim replaced."""
    entries = []
    for at, (name, x) in enumerate(checkpoint.tensors.items(), 7):
        kind = format_name if x.ndim == 2 else "F32"
        raw = FORMATS[kind].quantize(x)
        if name in victims:
            raw = spoilt(raw, kind, victims[name], at)
        entries.append((name, x.shape, FORMATS[kind], raw))
    GGUFWriter(path, checkpoint.metadata, entries).write()
    return path


def ends_with(problem: str, model: edgellm.Model, ids: list[int]) -> None:
    """Whether the model refuses to say anything, and why."""
    for use in (lambda: model.logits(ids), lambda: list(model.generate(ids, max_tokens=3)),
                lambda: list(model.generate(ids, max_tokens=3, temperature=0.0))):  # fmt: skip
        with pytest.raises(FileProblem, match=problem) as error:
            use()
        assert str(error.value).startswith(f"{model.path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3])
@pytest.mark.parametrize("format_name", ["F32", "Q4_1"])
def test_any_tensor(make: Any, format_name: str, tmp_path) -> None:
    """Also where it spoils the logit of one token only, or makes it minus infinity."""
    checkpoint = make(num_hidden_layers=1)
    for i, name in enumerate(checkpoint.tensors):
        path = save(checkpoint, tmp_path / "bad.gguf", {name: BAD[i % 3]}, format_name)
        with edgellm.load(path, n_threads=1) as model:
            ids = list(range(50)) if name.startswith("token_embd") else PROMPT
            ends_with(f"NaN or infinity stands in tensor '{name}'", model, ids)


@pytest.mark.parametrize("format_name", ["F16", "BF16", "Q8_0", "MXFP4", "Q4_K", "Q6_K"])
def test_any_format(format_name: str, tmp_path) -> None:
    checkpoint = tiny.llama(**WIDE)
    for name, value in zip(("blk.0.attn_k.weight", "blk.0.ffn_down.weight", "output.weight"), BAD, strict=True):
        path = save(checkpoint, tmp_path / "bad.gguf", {name: value}, format_name)
        with edgellm.load(path, n_threads=1, kv_type="q8_0") as model:
            ends_with(f"tensor '{name}'", model, PROMPT)


@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_what_is_finite(format_name: str) -> None:
    block_format = FORMATS[format_name]
    raw = block_format.quantize(np.random.default_rng(1).standard_normal((3, 256)).astype(np.float32))
    assert is_finite(Tensor("a", (3, 256), block_format, raw))
    for value in BAD:
        for at in (0, 3, 767):
            assert not is_finite(Tensor("a", (3, 256), block_format, spoilt(raw, format_name, value, at)))


def test_many_tensors(tmp_path) -> None:
    checkpoint = tiny.llama()
    path = save(checkpoint, tmp_path / "bad.gguf", dict.fromkeys(checkpoint.tensors, np.nan))
    with edgellm.load(path, n_threads=1) as model:
        ends_with(r"the tensors 'token_embd.weight', 'output_norm.weight', 'output.weight' and 18 more$", model, PROMPT)


def test_a_token_that_is_not_used_harms_nobody(tmp_path) -> None:
    good = tiny.llama()
    good_path = good.save(tmp_path / "good.gguf")
    good.tensors["token_embd.weight"][300] = np.nan
    with edgellm.load(good_path, n_threads=1) as expected, \
            edgellm.load(good.save(tmp_path / "bad.gguf"), n_threads=1) as model:  # fmt: skip
        np.testing.assert_array_equal(model.logits(PROMPT), expected.logits(PROMPT))
        ends_with("token_embd", model, [*PROMPT, 300])
        np.testing.assert_array_equal(model.logits(PROMPT), expected.logits(PROMPT))  # it can still be used


def test_weights_too_large_to_compute_with(tmp_path) -> None:
    """Keys and values beyond float16 are infinite in a cache of that type, and in one of float32 they are not."""
    checkpoint = tiny.llama()
    checkpoint.tensors["blk.0.attn_v.weight"] *= 1e6
    path = checkpoint.save(tmp_path / "large.gguf")
    with edgellm.load(path, n_threads=1) as model:
        ends_with("too large to compute with; .*kv_type='f32'", model, PROMPT)
    with edgellm.load(path, n_threads=1, kv_type="f32") as model:
        assert np.isfinite(model.logits(PROMPT)).all()
    checkpoint.tensors["output.weight"] *= 1e38
    with edgellm.load(checkpoint.save(tmp_path / "larger.gguf"), n_threads=1, kv_type="f32") as model:
        ends_with("too large to compute with; the file may be damaged$", model, PROMPT)


def test_scores_and_importance(tmp_path) -> None:
    path = save(tiny.llama(), tmp_path / "bad.gguf", {"blk.1.attn_q.weight": np.nan})
    with edgellm.load(path, n_threads=1) as model:
        with pytest.raises(FileProblem, match=r"tensor 'blk.1.attn_q.weight'"):
            list(scored_rows(model, PROMPT))
        for with_head in (True, False):
            with pytest.raises(FileProblem, match=r"tensor 'blk.1.attn_q.weight'|is not finite"):
                collect_imatrix(model, PROMPT, 20, with_head=with_head)


def test_an_answer_that_ends_so_is_over(tmp_path) -> None:
    path = save(tiny.llama(), tmp_path / "bad.gguf", {"output.weight": np.nan})
    with edgellm.load(path, n_threads=2) as model, GGUFFile.open(path) as file:
        generation = model.generate(PROMPT)
        with pytest.raises(FileProblem):
            next(generation)
        assert generation.finish_reason == "cancelled" and list(generation) == [] and generation.token_ids == []
        assert [name for name, tensor in file.tensors.items() if not is_finite(tensor)] == ["output.weight"]
