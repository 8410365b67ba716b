"""LoRA beside experts at run time: what PEFT computes, alone and in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.formats.adapters import Adapter, LowRank
from edgellm.formats.adapters.gguf import write_gguf_adapter
from edgellm.formats.gguf import GGUFFile
from tests import peft_models
from tests.convert.mixtures import MIXTURES
from tests.expert_models import save_adapter
from tests.peft_models import IDS

from .test_adapters import FLOAT32, answer, load, together

# Latent attention has its linears under other names; a checkpoint of the last one is written under another class.
FAMILIES = [family for family in MIXTURES if family not in ("bailingmoe2",)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture with two adapters, `one` and `two`, the second beside some of its experts' matrices."""
    folder = tmp_path_factory.mktemp("olmoe")
    peft_models.save_base("olmoe", folder)
    save_adapter(folder, "olmoe", "one", seed=1)
    save_adapter(folder, "olmoe", "two", seed=2, target_parameters=["layers.1.mlp.experts.down_proj"], r=3)
    edgellm.quantize_file(folder / "base.gguf", folder / "q8.gguf", "Q8_0")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_peft(family: str, tmp_path: Path) -> None:
    path = peft_models.save_base(family, tmp_path)
    expected = peft_models.logits(save_adapter(tmp_path, family, "adapter"))
    with load(path) as model:
        plain = model.logits(IDS)
        model.set_adapters(model.load_adapter(tmp_path / "adapter"))
        found = model.logits(IDS)
    np.testing.assert_allclose(found, expected, atol=2 * FLOAT32)
    assert np.abs(plain - expected).max() > 0.1


@pytest.mark.parametrize("family", ["deepseek v3", "gemma4", "gpt-oss"])
def test_beside_every_stack_of_matrices_is_what_a_merged_model_computes(family: str, tmp_path: Path) -> None:
    """Of latent attention too, whose heads all have their own."""
    path, random = peft_models.save_base(family, tmp_path), np.random.default_rng(1)
    with GGUFFile.open(path) as file:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items() if len(tensor.shape) == 3}
        architecture = file.get("general.architecture", str)
    weights = {}
    for name, (n, n_out, n_in) in shapes.items():
        a, b = (random.normal(0, 0.1, size).astype(np.float32) for size in ((n, 3, n_in), (n, n_out, 3)))
        weights[name] = LowRank(a, b, 1.5)
    assert family != "deepseek v3" or {"blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"} <= weights.keys()
    write_gguf_adapter(tmp_path / "a.gguf", Adapter(architecture, weights))
    edgellm.merge_adapters(path, tmp_path / "a.gguf", tmp_path / "merged.gguf")
    with load(path) as model, load(tmp_path / "merged.gguf") as merged:
        plain = model.logits(IDS)
        model.set_adapters(model.load_adapter(tmp_path / "a.gguf"))
        np.testing.assert_allclose(model.logits(IDS), merged.logits(IDS), atol=2 * FLOAT32)
        assert np.abs(plain - merged.logits(IDS)).max() > 0.1


def test_several_with_scales_are_those_of_peft(folder: Path) -> None:
    scales = {"one": 0.5, "two": -2.0}
    with load(folder / "base.gguf") as model:
        plain = model.logits(IDS)
        found = {}
        for name in scales:
            model.load_adapter(folder / name)
        for uses in ({"one": 1.0}, {"two": 1.0}, {"one": 1.0, "two": 1.0}, scales, {}):
            model.set_adapters(uses)
            found[tuple(uses)] = model.logits(IDS)
    np.testing.assert_array_equal(found[()], plain)
    for name in scales:
        assert np.abs(found[name,] - plain).max() > 0.1
        expected = peft_models.logits(peft_models.with_adapters(folder, name))
        np.testing.assert_allclose(found[name,], expected, atol=FLOAT32)


@pytest.mark.parametrize(("file", "activations"), [("base", "f32"), ("q8", "int8"), ("q8", "f32")])
def test_the_same_bits_however_a_text_is_cut(folder: Path, file: str, activations: str) -> None:
    whole: Any = None
    for n_batch, n_threads in [(512, 2), (1, 1), (7, 2), (37, 1)]:
        with load(folder / f"{file}.gguf", activations=activations, n_batch=n_batch, n_threads=n_threads) as model:
            model.set_adapters([model.load_adapter(folder / name) for name in ("one", "two")])
            found = model.logits(IDS)
            whole = found if whole is None else whole
            np.testing.assert_array_equal(found, whole, err_msg=f"{n_batch=} {n_threads=}")


def test_in_int8_as_near_to_float32_as_the_model_without_it(folder: Path) -> None:
    with load(folder / "q8.gguf") as exact, load(folder / "q8.gguf", activations="int8") as model:
        before = np.abs(exact.logits(IDS) - model.logits(IDS)).mean()
        for one in (exact, model):
            one.set_adapters(one.load_adapter(folder / "one"))
        assert np.abs(exact.logits(IDS) - model.logits(IDS)).mean() < 2 * before


def test_in_one_batch_each_text_is_what_it_is_alone(folder: Path) -> None:
    wanted: list[Any] = [{}, "one", {"one": 0.5}, {"two": 3.0, "one": -0.3}, {"two": 2.0}]
    prompts = [[3 + i, *IDS[i:40]] for i in range(len(wanted))]
    with load(folder / "base.gguf") as model:
        for name in ("one", "two"):
            model.load_adapter(folder / name)
        alone = [answer(model, adapters, prompt) for adapters, prompt in zip(wanted, prompts, strict=True)]
        model._scheduler.prefixes.clear()
        assert together(model, wanted, prompts, least=3) == alone
