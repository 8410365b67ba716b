"""Merging: the new file computes what the model does with its adapters beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.errors import EdgellmError, FileProblem, FormatError, UsageError
from edgellm.formats.gguf import GGUFFile
from tests import expert_models, peft_models
from tests.peft_models import IDS, save_adapter

FLOAT32 = 5e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    peft_models.save_base("llama", folder)
    save_adapter(folder, "one", seed=1)
    save_adapter(folder, "dora", seed=3, use_dora=True)
    save_adapter(folder, "whole", seed=4, modules_to_save=["lm_head", "model.norm"])
    edgellm.quantize_file(folder / "base.gguf", folder / "q8.gguf", "Q8_0")
    return folder


def logits_of(path: Path, **adapters: Any) -> np.ndarray:
    """By what a file has, with adapters beside it: path by name."""
    with edgellm.load(path, activations="f32", kv_type="f32", n_threads=1) as model:
        for name, place in adapters.items():
            model.load_adapter(place, name)
        model.set_adapters(list(adapters))
        return model.logits(IDS)


@pytest.mark.parametrize("name", ["one", "dora", "whole"])
def test_the_merged_model_is_the_model_with_its_adapter(folder: Path, tmp_path: Path, name: str) -> None:
    before = (folder / "base.gguf").read_bytes()
    done = edgellm.merge_adapters(folder / "base.gguf", folder / name, tmp_path / "merged.gguf")
    assert done.type_name == "F32" and not done.warnings
    found = logits_of(tmp_path / "merged.gguf")
    np.testing.assert_allclose(found, logits_of(folder / "base.gguf", a=folder / name), atol=FLOAT32)
    expected = peft_models.logits(peft_models.with_adapters(folder, name).merge_and_unload())
    np.testing.assert_allclose(found, expected, atol=FLOAT32)
    assert (folder / "base.gguf").read_bytes() == before


@pytest.mark.parametrize("family", ["olmoe", "gpt-oss"])
def test_experts(family: str, tmp_path: Path) -> None:
    """In floats, and quantized in place; a piece of rows may begin in one expert and end in another."""
    peft_models.save_base(family, tmp_path)
    expert_models.save_adapter(tmp_path, family, "a")
    beside = logits_of(tmp_path / "base.gguf", a=tmp_path / "a")
    done = edgellm.merge_adapters(tmp_path / "base.gguf", {tmp_path / "a": 0.5}, tmp_path / "half.gguf")
    assert done.type_name == "F32" and not done.warnings
    edgellm.merge_adapters(tmp_path / "half.gguf", {tmp_path / "a": 0.5}, tmp_path / "merged.gguf")
    np.testing.assert_allclose(logits_of(tmp_path / "merged.gguf"), beside, atol=2 * FLOAT32)
    edgellm.merge_adapters(tmp_path / "base.gguf", tmp_path / "a", tmp_path / "q8.gguf", "Q8_0")
    edgellm.quantize_file(tmp_path / "merged.gguf", tmp_path / "same.gguf", "Q8_0")
    lost = np.abs(logits_of(tmp_path / "same.gguf") - beside).mean()
    assert 0 < np.abs(logits_of(tmp_path / "q8.gguf") - beside).mean() < 2 * lost


def test_several_with_scales(folder: Path, tmp_path: Path) -> None:
    scales = {folder / "one": 0.5, folder / "dora": 1.0}
    edgellm.merge_adapters(folder / "base.gguf", scales, tmp_path / "merged.gguf")
    with edgellm.load(folder / "base.gguf", activations="f32", kv_type="f32") as model:
        model.set_adapters({model.load_adapter(path): scale for path, scale in scales.items()})
        np.testing.assert_allclose(logits_of(tmp_path / "merged.gguf"), model.logits(IDS), atol=FLOAT32)


def test_a_quantized_model_keeps_its_types_and_is_near(folder: Path, tmp_path: Path) -> None:
    done = edgellm.merge_adapters(folder / "q8.gguf", folder / "one", tmp_path / "merged.gguf")
    assert done.type_name == "Q8_0" and "quantized anew (Q8_0)" in done.warnings[0]
    with GGUFFile.open(folder / "q8.gguf") as old, GGUFFile.open(tmp_path / "merged.gguf") as new:
        assert {name: tensor.format for name, tensor in old.tensors.items()} == {
            name: tensor.format for name, tensor in new.tensors.items()
        }
        assert dict(old.metadata).keys() == dict(new.metadata).keys()
        same = "token_embd.weight"  # what no adapter changes is copied
        np.testing.assert_array_equal(old.tensors[same].raw, new.tensors[same].raw)
    beside = logits_of(folder / "q8.gguf", a=folder / "one")
    lost = np.abs(logits_of(folder / "q8.gguf") - logits_of(folder / "base.gguf")).mean()
    assert np.abs(logits_of(tmp_path / "merged.gguf") - beside).mean() < 2 * lost


def test_another_type(folder: Path, tmp_path: Path) -> None:
    done = edgellm.merge_adapters(folder / "base.gguf", folder / "one", tmp_path / "a.gguf", "Q8_0")
    assert done.type_name == "Q8_0"
    edgellm.merge_adapters(folder / "base.gguf", folder / "one", tmp_path / "f32.gguf")
    edgellm.quantize_file(tmp_path / "f32.gguf", tmp_path / "b.gguf", "Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["lm_head", "embed_tokens"]])
def test_tied_embeddings_become_two_where_they_differ(tmp_path: Path, targets: list[str]) -> None:
    peft_models.save_base("llama, tied", tmp_path)
    save_adapter(tmp_path, "adapter", target_modules=targets)
    edgellm.merge_adapters(tmp_path / "base.gguf", tmp_path / "adapter", tmp_path / "merged.gguf")
    with GGUFFile.open(tmp_path / "merged.gguf") as file:
        assert "output.weight" in file.tensors
    expected = logits_of(tmp_path / "base.gguf", a=tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(tmp_path / "merged.gguf"), expected, atol=FLOAT32)


@pytest.mark.parametrize(
    ("adapters", "kind", "words"),
    [
        ("whole", UsageError, "with a scale of 0.5"),
        ("nothing", FileProblem, "does not exist"),
        ("base.gguf", FileProblem, "and no adapter"),
    ],
)
def test_what_cannot_be_merged(
    folder: Path, tmp_path: Path, adapters: str, kind: type[EdgellmError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        edgellm.merge_adapters(folder / "base.gguf", {folder / adapters: 0.5}, tmp_path / "merged.gguf")
    with pytest.raises(UsageError, match="being read"):
        edgellm.merge_adapters(folder / "base.gguf", folder / "one", folder / "base.gguf")
    with pytest.raises(UsageError, match="adapters is empty"):
        edgellm.merge_adapters(folder / "base.gguf", [], tmp_path / "merged.gguf")
    with pytest.raises(UsageError, match="no type of file"):
        edgellm.merge_adapters(folder / "base.gguf", folder / "one", tmp_path / "merged.gguf", "Q9")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["one", "dora"])
@pytest.mark.filterwarnings("error")
def test_what_is_too_large_is_said_of_the_adapter(folder: Path, tmp_path: Path, name: str) -> None:
    """Neither of the model's file, which is as it should be, nor are its weights silently 0."""
    from edgellm.arch.adapters import read_adapter

    with GGUFFile.open(folder / "base.gguf") as file:
        adapter = read_adapter(folder / name, file.metadata, file.tensors)
    large = {name: replace(change, a=change.a * np.float32(1e30)) for name, change in adapter.weights.items()}
    with pytest.raises(FormatError, match=r"adapters add at a scale of 1e\+20 does not fit into float32; try smaller"):
        edgellm.merge_adapters(folder / "base.gguf", {replace(adapter, weights=large): 1e20}, tmp_path / "merged.gguf")
    assert not list(tmp_path.iterdir())


def test_lengths_of_large_rows(folder: Path) -> None:
    """Their squares are more than float32 holds; the rows get their magnitudes all the same."""
    from edgellm.arch.adapters import read_adapter
    from edgellm.convert.merge import merged_parts

    with GGUFFile.open(folder / "base.gguf") as file:
        adapter = read_adapter(folder / "dora", file.metadata, file.tensors)
        change = adapter.weights["blk.0.attn_q.weight"]
        parts, _ = merged_parts(file, [(adapter, 1e25)])
        part = next(part for part in parts if part.name == "blk.0.attn_q.weight")
        assert part.change is not None and change.magnitude is not None
        y = part.change(slice(0, 4), np.zeros((4, change.shape[1]), np.float32))
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), change.magnitude[:4], rtol=1e-5)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        (lambda one: 5, "adapters is 5; expected adapters, or their scales by path"),
        (lambda one: None, "adapters is None"),
        (lambda one: [one, one], "adapters names .*one twice; give it once"),
        (lambda one: {one: 1.0, str(one): 0.5}, "adapters names .*one twice"),
    ],
)
def test_what_is_no_list_of_adapters(folder: Path, tmp_path: Path, adapters: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        edgellm.merge_adapters(folder / "base.gguf", adapters(folder / "one"), tmp_path / "merged.gguf")


def test_a_file_of_an_adapter_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    weights = folder / "one" / "adapter_model.safetensors"
    before = weights.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(weights)
    for target in (weights, link):
        with pytest.raises(UsageError, match="is a file that is being read; choose another name to write"):
            edgellm.merge_adapters(folder / "base.gguf", folder / "one", target)
    assert weights.read_bytes() == before


def test_a_row_without_a_length(folder: Path, tmp_path: Path) -> None:
    from edgellm.arch.adapters import read_adapter
    from edgellm.convert.merge import merged_parts

    with GGUFFile.open(folder / "base.gguf") as file:
        adapter = read_adapter(folder / "dora", file.metadata, file.tensors)
        parts, changed = merged_parts(file, [(adapter, 1.0)])
        part = next(part for part in parts if part.name == "blk.0.attn_q.weight")
        assert part.name in changed and part.change is not None
        zero = -adapter.weights[part.name].added(slice(0, 4))
        with pytest.raises(FormatError, match="no direction"):
            part.change(slice(0, 4), zero)
