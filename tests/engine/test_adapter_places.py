"""Where adapters can stand in a model: norms with two weights, and weights that cannot be changed while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.errors import UnsupportedError, UsageError
from edgellm.formats.adapters import Adapter, LowRank
from edgellm.formats.gguf import GGUFFile
from tests import peft_models
from tests.convert import checkpoints, families
from tests.peft_models import IDS

from .test_adapters import FLOAT32, load


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("gpt2", tmp_path_factory.mktemp("gpt2"))


def save_family(family: str, folder: Path) -> Path:
    """A checkpoint in `folder`/base and its GGUF file, in float32; returns `folder`."""
    families.model_of(family).save_pretrained(folder / "base")
    checkpoints.tokenizer().save_pretrained(folder / "base")
    convert_checkpoint(folder / "base", folder / "base.gguf")
    return folder


def whole(folder: Path, *names: str, seed: int = 0) -> Adapter:
    """An adapter with random weights in place of some of the model's."""
    random = np.random.default_rng(seed)
    with GGUFFile.open(folder / "base.gguf") as file:
        shapes = {name: file.tensors[name].shape for name in names}
        architecture = file.get("general.architecture", str)
    replaced = {name: random.normal(0.5, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    return Adapter(architecture, {}, replaced)


def low_rank(folder: Path, name: str) -> Adapter:
    with GGUFFile.open(folder / "base.gguf") as file:
        *stack, n_out, n_in = file.tensors[name].shape
        architecture = file.get("general.architecture", str)
    a, b = np.ones((*stack, 2, n_in), np.float32), np.ones((*stack, n_out, 2), np.float32)
    return Adapter(architecture, {name: LowRank(a, b, 1.0)})


@pytest.mark.parametrize(
    "settings",
    [{"bias": "all"}, {"modules_to_save": ["ln_f"]}, {"modules_to_save": ["ln_1", "wpe"]}],
)
def test_norms_with_two_weights_are_those_of_peft(gpt2: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "base").symlink_to(gpt2 / "base")
    adapted = peft_models.save_adapter(tmp_path, "a", target_modules=["c_attn"], fan_in_fan_out=True, **settings)
    expected = peft_models.logits(adapted)
    with load(gpt2 / "base.gguf") as model:
        plain = model.logits(IDS)
        model.set_adapters(model.load_adapter(tmp_path / "a"))
        np.testing.assert_allclose(model.logits(IDS), expected, atol=FLOAT32)
        assert np.abs(plain - expected).max() > 0.1
        model.set_adapters({})
        np.testing.assert_array_equal(model.logits(IDS), plain)


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
def test_a_norm_of_which_one_or_both_are_others_is_that_of_the_merged_model(
    gpt2: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    adapter = whole(gpt2, *(f"blk.1.attn_norm.{name}" for name in names))
    edgellm.merge_adapters(gpt2 / "base.gguf", [adapter], tmp_path / "merged.gguf", n_threads=1)
    with load(tmp_path / "merged.gguf") as merged, load(gpt2 / "base.gguf") as model:
        model.set_adapters(model.load_adapter(adapter, name="a"))
        np.testing.assert_array_equal(model.logits(IDS), merged.logits(IDS))


def test_two_adapters_do_not_share_a_norm(gpt2: Path) -> None:
    one, two = (whole(gpt2, f"output_norm.{name}") for name in ("weight", "bias"))
    with load(gpt2 / "base.gguf") as model:
        for name, adapter in (("one", one), ("two", two)):
            model.load_adapter(adapter, name=name)
        with pytest.raises(UsageError, match="'one' and 'two', which hold the weight and the bias of one norm"):
            model.set_adapters(["one", "two"])
        model.set_adapters(["one"])


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("lfm2", ["blk.0.shortconv.conv.weight"]),  # keeps a state
        ("gemma3n", ["altup_proj.weight", "per_layer_token_embd.weight"]),  # parts of one; other embeddings
        ("gemma4", ["blk.0.layer_output_scale.weight"]),  # a constant of the graph
        ("qwen35", ["blk.0.ssm_dt.bias"]),
    ],
)
def test_weights_that_cannot_be_changed_while_a_model_runs(family: str, names: list[str], tmp_path: Path) -> None:
    """They would be changed wrongly, or not at all."""
    save_family(family, tmp_path)
    with load(tmp_path / "base.gguf") as model:
        for name in names:
            shape = model._file.tensors[name].shape
            adapters = [low_rank(tmp_path, name)] if len(shape) > 1 else []
            if not name.startswith("per_layer"):
                adapters.append(whole(tmp_path, name))
            for adapter in adapters:
                with pytest.raises(UnsupportedError, match=rf"the adapter 'a' has .* {name!r}, .*; merge it into"):
                    model.load_adapter(adapter, name="a")
        assert not model.adapters


def test_low_rank_matrices_beside_other_embeddings_are_refused(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(gpt2 / "base")
    peft_models.save_adapter(tmp_path, "a", target_modules=["wpe"])
    with load(gpt2 / "base.gguf") as model:
        words = r"transformer\.wpe: the adapter changes these embeddings; edgellm has LoRA beside those of tokens"
        with pytest.raises(UnsupportedError, match=words):
            model.load_adapter(tmp_path / "a")
