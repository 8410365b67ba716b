"""Adapters beside experts as files: both forms of PEFT and GGUF say the same, and what cannot be is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import OlmoeForCausalLM

import edgellm
from edgellm.arch.adapters import naming_of, read_adapter, save_adapter
from edgellm.errors import EdgellmError, FormatError, UnsupportedError, UsageError
from edgellm.formats.adapters import Adapter, LowRank
from edgellm.formats.adapters.experts import parameters_of
from edgellm.formats.adapters.gguf import read_gguf_adapter, write_gguf_adapter
from edgellm.formats.adapters.peft import read_peft, write_peft
from edgellm.formats.gguf import GGUFFile
from tests import expert_models, peft_models
from tests.convert import checkpoints
from tests.convert.checkpoints import edit_json
from tests.convert.mixtures import MIXTURES

from .test_adapters import refused, same

N_EXPERTS, RANK = 8, 4  # of the mixture here
EXPERTS = "base_model.model.model.layers.0.mlp.experts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture with an adapter `all`, and `experts`, beside these alone."""
    folder = tmp_path_factory.mktemp("olmoe")
    peft_models.save_base("olmoe", folder)
    expert_models.save_adapter(folder, "olmoe", "all", seed=1)
    expert_models.save_adapter(folder, "olmoe", "experts", seed=2, target_modules=[], use_rslora=True)
    return folder


@pytest.fixture
def file(folder: Path) -> Any:
    with GGUFFile.open(folder / "base.gguf") as file:
        yield file


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_called_what_transformers_calls_them(family: str, tmp_path: Path) -> None:
    model = checkpoints.save(family, tmp_path / "model")
    edgellm.convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    shapes = {name: tuple(x.shape) for name, x in model.named_parameters()}
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        naming = naming_of(file.metadata)
        stacks = {name: stack for name, stack in naming.stacks.items() if name in file.tensors}
        assert stacks
        for name, stack in stacks.items():
            n_experts, n_out, n_in = file.tensors[name].shape
            assert (stack.n_experts, stack.n_in) == (n_experts, n_in)
            whole = (n_in, stack.n_parts * n_out) if stack.is_across else (stack.n_parts * n_out, n_in)
            assert shapes[stack.parameters[0]] == (n_experts, *whole)


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "gpt-oss", "granitemoe", "qwen2moe", "deepseek v3"])
def test_a_folder_that_is_written_is_one_of_peft(family: str, tmp_path: Path) -> None:
    """PEFT computes the same with it: with other matrices for gates and ups, as they are trained here, too."""
    peft_models.save_base(family, tmp_path)
    rng = np.random.default_rng(3)
    with GGUFFile.open(tmp_path / "base.gguf") as file:
        kinds = ("_exps.weight", "attn_output.weight", "ffn_up_shexp.weight")
        weights = {
            name: _random(rng, tensor.shape, 3 if "gate" in name else 2)
            for name, tensor in file.tensors.items()
            if name.endswith(kinds)
        }
        adapter = Adapter(file.get("general.architecture", str), weights, dropout=0.1)
        save_adapter(tmp_path / "adapter", adapter, file.metadata)
        again = read_adapter(tmp_path / "adapter", file.metadata, file.tensors)
    same(adapter, again, rtol=1e-6)
    assert {name: change.rank for name, change in again.weights.items()} == {
        name: change.rank for name, change in weights.items()
    }
    edgellm.convert_checkpoint(tmp_path / "adapter", tmp_path / "adapter.gguf", base=tmp_path / "base.gguf")
    same(adapter, read_gguf_adapter(tmp_path / "adapter.gguf"), rtol=1e-6)
    model = of_peft(tmp_path, tmp_path / "adapter")
    with edgellm.load(tmp_path / "base.gguf", n_threads=1, activations="f32", kv_type="f32") as ours:
        plain = ours.logits(peft_models.IDS)
        ours.set_adapters(ours.load_adapter(tmp_path / "adapter"))
        found = ours.logits(peft_models.IDS)
    np.testing.assert_allclose(found, peft_models.logits(model), atol=1e-4)
    assert np.abs(found - plain).max() > 0.1


def of_peft(folder: Path, adapter: Path) -> Any:
    """The base model in the folder with the adapter, as PEFT has it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*_pattern keys did not match any")  # it looks at modules alone
        return PeftModel.from_pretrained(peft_models.base_of(folder), adapter).eval()


def _random(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> LowRank:
    *of_experts, n_out, n_in = shape
    a, b = (rng.normal(0, 0.3, (*of_experts, *size)).astype(np.float32) for size in ((rank, n_in), (n_out, rank)))
    return LowRank(a, b, 0.7 if rank == 2 else 1.25)


@pytest.mark.parametrize("name", ["all", "experts"])
def test_what_peft_wrote_comes_back(folder: Path, file: GGUFFile, tmp_path: Path, name: str) -> None:
    """One A for gates and ups stays one: the files have the same tensors."""
    adapter = read_adapter(folder / name, file.metadata, file.tensors)
    assert not adapter.notes
    save_adapter(tmp_path, adapter, file.metadata)
    theirs, ours = (load_file(path / "adapter_model.safetensors") for path in (folder / name, tmp_path))
    assert theirs.keys() == ours.keys()
    for key, x in ours.items():
        assert torch.equal(x, theirs[key]), key
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0 and config["use_rslora"] is (name == "experts")


def test_a_gguf_adapter_that_is_written_is_read_again(folder: Path, file: GGUFFile, tmp_path: Path) -> None:
    adapter = read_adapter(folder / "all", file.metadata, file.tensors)
    write_gguf_adapter(tmp_path / "a.gguf", adapter)
    again = read_adapter(tmp_path / "a.gguf", file.metadata, file.tensors)
    same(adapter, again, rtol=1e-6)
    with GGUFFile.open(tmp_path / "a.gguf") as written:
        a, b = (written.tensors[f"blk.0.ffn_up_exps.weight.lora_{side}"].shape for side in "ab")
        n_out, n_in = file.tensors["blk.0.ffn_up_exps.weight"].shape[1:]
        assert a == (N_EXPERTS, 6, n_in) and b == (N_EXPERTS, n_out, 6)
    edgellm.convert_checkpoint(folder / "all", tmp_path / "b.gguf", base=folder / "base")
    same(adapter, read_gguf_adapter(tmp_path / "b.gguf"), rtol=1e-6)
    edgellm.export_checkpoint(tmp_path / "b.gguf", tmp_path / "out", base=folder / "base.gguf")
    same(adapter, read_adapter(tmp_path / "out", file.metadata, file.tensors), rtol=1e-6)


# --- experts one by one ---------------------------------------------------------------------------------------


def by_expert(adapter: Adapter, file: GGUFFile, target: Path, of_missing: tuple[int, ...] = ()) -> None:
    """The folder that PEFT saves where each expert is a module; without some experts."""
    naming, tensors = naming_of(file.metadata), {}
    for name, change in adapter.weights.items():
        for expert in range(N_EXPERTS):
            module = (naming.stacks[name].split or "").format(expert)
            if expert not in of_missing:
                tensors[f"base_model.model.{module}.lora_A.weight"] = torch.from_numpy(change.a[expert].copy())
                tensors[f"base_model.model.{module}.lora_B.weight"] = torch.from_numpy(change.b[expert].copy())
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors")
    change = next(iter(adapter.weights.values()))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": change.rank, "lora_alpha": change.scale * change.rank,
              "target_modules": ["gate_proj", "up_proj", "down_proj"]}  # fmt: skip
    (target / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture
def plain(file: GGUFFile) -> Adapter:
    """An adapter of one rank and scale beside all experts."""
    rng = np.random.default_rng(1)
    names = [name for name in file.tensors if name.endswith("_exps.weight")]
    return Adapter("olmoe", {name: _random(rng, file.tensors[name].shape, 2) for name in names})


def test_experts_one_by_one(plain: Adapter, file: GGUFFile, folder: Path, tmp_path: Path) -> None:
    """PEFT reads such a folder with a model of transformers 5, too."""
    by_expert(plain, file, tmp_path / "a")
    adapter = read_adapter(tmp_path / "a", file.metadata, file.tensors)
    same(plain, adapter)
    assert not adapter.notes
    model = of_peft(folder, tmp_path / "a")
    with edgellm.load(folder / "base.gguf", n_threads=1, activations="f32", kv_type="f32") as ours:
        ours.set_adapters(ours.load_adapter(tmp_path / "a"))
        np.testing.assert_allclose(ours.logits(peft_models.IDS), peft_models.logits(model), atol=1e-4)


def test_some_experts_alone_and_of_other_ranks(plain: Adapter, file: GGUFFile, tmp_path: Path) -> None:
    by_expert(plain, file, tmp_path / "a", of_missing=(0, 3))
    module = "model.layers.1.mlp.experts.5.up_proj"
    path = tmp_path / "a" / "adapter_model.safetensors"
    a, b = torch.ones(3, 64), torch.ones(checkpoints.model_of("olmoe").config.intermediate_size, 3)
    changed = {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    save_file(load_file(path) | changed, path)
    edit_json(tmp_path / "a" / "adapter_config.json", rank_pattern={module: 3}, alpha_pattern={module: 12})
    found = read_adapter(tmp_path / "a", file.metadata, file.tensors).weights
    for name, change in found.items():
        expected = plain.weights[name].added().reshape(change.shape).copy()
        expected[[0, 3]] = 0
        if name == "blk.1.ffn_up_exps.weight":
            expected[5] = 12.0
        np.testing.assert_allclose(change.added().reshape(change.shape), expected, atol=1e-5)


# --- earlier versions -----------------------------------------------------------------------------------------


def turned(source: Path, target: Path, version: str | None) -> None:
    """What PEFT before 0.19.1 would have saved of the same: it took inputs for outputs."""
    shutil.copytree(source, target)
    path = target / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".experts." in name and "lora_A" in name]:
        a, b = tensors[name], tensors[other := name.replace("lora_A", "lora_B")]
        rank = len(a) // N_EXPERTS
        tensors[name] = b.reshape(-1, rank, N_EXPERTS).permute(2, 1, 0).reshape(-1, len(b)).contiguous()
        tensors[other] = a.reshape(N_EXPERTS, rank, -1).permute(2, 1, 0).reshape(a.shape[1], -1).contiguous()
    save_file(tensors, path)
    edit_json(target / "adapter_config.json", peft_version=version)


@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", "0.17.0.dev1", None])
def test_what_earlier_versions_of_peft_wrote(folder: Path, file: GGUFFile, tmp_path: Path, version: str | None) -> None:
    turned(folder / "all", tmp_path / "a", version)
    adapter = read_adapter(tmp_path / "a", file.metadata, file.tensors)
    same(read_adapter(folder / "all", file.metadata, file.tensors), adapter)


def test_where_shapes_do_not_tell_the_version_does(tmp_path: Path) -> None:
    """With as many inputs as outputs."""
    config = checkpoints.model_of("olmoe").config
    config.intermediate_size = config.hidden_size // 2
    OlmoeForCausalLM(config).save_pretrained(tmp_path / "base")
    checkpoints.tokenizer().save_pretrained(tmp_path / "base")
    edgellm.convert_checkpoint(tmp_path / "base", tmp_path / "base.gguf")
    expert_models.save_adapter(tmp_path, "olmoe", "all")
    with GGUFFile.open(tmp_path / "base.gguf") as file:
        expected = read_adapter(tmp_path / "all", file.metadata, file.tensors)
        for version in ("0.18.1", None):
            turned(tmp_path / "all", tmp_path / f"{version}", version)
            found = read_adapter(tmp_path / f"{version}", file.metadata, file.tensors)
            same(expected, found)
            assert ["peft_version is missing" in note for note in found.notes] == [True] * (version is None)


# --- any adapter ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 4), min_size=6, max_size=6).filter(any), seed=st.integers(0, 99),
    scales=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=6, max_size=6), stabilized=st.booleans(),
    shares=st.booleans(),
)  # fmt: skip
def test_any_adapter_comes_back(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, ranks: list[int], seed: int, scales: list[float],
    stabilized: bool, shares: bool,
) -> None:  # fmt: skip
    """Beside some stacks of two layers, each with a rank and a scale of its own; gates and ups may have one A."""
    rng, weights = np.random.default_rng(seed), {}
    with GGUFFile.open(folder / "base.gguf") as file:
        names = [f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(2) for part in ("gate", "up", "down")]
        for name, rank, scale in zip(names, ranks, scales, strict=True):
            if rank:
                weights[name] = replace(_random(rng, file.tensors[name].shape, rank), scale=scale)
        for layer in range(2):
            gate, up = (f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up"))
            if shares and gate in weights and up in weights and weights[gate].rank == weights[up].rank:
                weights[up] = replace(weights[up], a=weights[gate].a)
        naming = naming_of(file.metadata)
    adapter = Adapter("olmoe", weights, rank_stabilized=stabilized)
    target = tmp_path_factory.mktemp("adapter")
    write_peft(target, adapter, naming)
    same(adapter, read_peft(target, "olmoe", naming), rtol=1e-5)
    write_gguf_adapter(target / "a.gguf", adapter)
    same(adapter, read_gguf_adapter(target / "a.gguf"), rtol=1e-5)
    for parameter, change in parameters_of(weights, naming).items():
        change.check(parameter)


@given(start=st.integers(0, 30), stop=st.integers(0, 30))
def test_rows_are_counted_through_all_experts(start: int, stop: int) -> None:
    change = _random(np.random.default_rng(0), (3, 7, 5), 2)
    start, stop = sorted((start, stop))
    whole = np.float32(change.scale) * (change.b @ change.a).reshape(21, 5)
    np.testing.assert_allclose(change.added(slice(start, stop)), whole[start:stop], rtol=1e-6)
    assert change.added().shape == (21, 5) and change.shape == (3, 7, 5) and change.rank == 2


# --- hostile files --------------------------------------------------------------------------------------------


def _of_experts(changes: dict[str, Any]) -> Callable[[Path], None]:
    def change(target: Path) -> None:
        path = target / "adapter_model.safetensors"
        save_file({name: x for name, x in (load_file(path) | changes).items() if x is not None}, path)

    return change


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda target: edit_json(target / "adapter_config.json", **changes)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (_config(target_parameters=["experts.some"]), UnsupportedError, ("target_parameters", "'experts.some'")),
        (_config(target_parameters=["experts.gate_up_proj_bias"]), UnsupportedError, ("gate_up_proj_bias",)),
        (_config(target_parameters="experts.down_proj"), FormatError, ("target_parameters", "a list of names")),
        (_config(target_parameters=[3]), FormatError, ("target_parameters", "a list of names")),
        (_config(target_parameters=["experts.down_proj"]), UnsupportedError, ("experts.base_layer", "no weight")),
        (_config(target_parameters=None), UnsupportedError, ("mlp.experts", "no weight")),
        (_config(use_dora=True), UnsupportedError, ("experts", "magnitude (use_dora)")),
        (_config(alpha_pattern={}, rank_pattern={}), FormatError, ("gate_up_proj", "rank 6", "says 4 (r)")),
        (_of_experts({f"{EXPERTS}.lora_B.weight": None}), FormatError, ("down_proj has lora_A [32, ", "lora_B of two")),
        (_of_experts({f"{EXPERTS}.lora_A.weight": torch.zeros(33, 96)}), FormatError, ("down_proj", "[33, 96]")),
        (_of_experts({f"{EXPERTS}.lora_B.weight": torch.zeros(64, 40)}), FormatError, ("down_proj", "[64, 40]")),
        (_of_experts({f"{EXPERTS}.lora_A.weight": torch.zeros(32, 7)}), FormatError, ("blk.0.ffn_down_exps", "7")),
        (_of_experts({f"{EXPERTS}.lora_A.weight": torch.zeros(8, 4, 96)}), FormatError, ("down_proj", "[8, 4, 96]")),
        (_of_experts({f"{EXPERTS}.base_layer.lora_B.weight": torch.zeros(193, 48)}), FormatError, ("193 outputs",)),
        (_of_experts({f"{EXPERTS}.{n}.down_proj.lora_{s}.weight": torch.zeros(*size)
                      for n in range(2) for s, size in (("A", (4, 96)), ("B", (64, 4)))}), FormatError, ("twice",)),
        (_of_experts({f"{EXPERTS}.0.up_proj.lora_A.weight": torch.zeros(4, 64)}), FormatError, ("experts.0.up_proj",)),
        (_of_experts({f"{EXPERTS}.9.up_proj.lora_A.weight": torch.zeros(4, 64)}), UnsupportedError, ("experts.9",)),
    ],
)  # fmt: skip
def test_folders_that_cannot_be(folder: Path, file: GGUFFile, tmp_path: Path, change, kind, words) -> None:
    shutil.copytree(folder / "experts", tmp_path / "a")
    change(tmp_path / "a")
    refused(tmp_path / "a", file, kind, *words)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ((7, 2, 64), (8, 96, 2), ("[7, 2, 64]", "[8, 96, 2]", "or of experts")),
        ((7, 2, 64), (7, 96, 2), ("blk.0.ffn_up_exps.weight", "[7, 96, 64]")),
        ((2, 64), (96, 2), ("blk.0.ffn_up_exps.weight", "[96, 64]")),
        ((8, 2, 64), (96, 2), ("[8, 2, 64]", "[96, 2]")),
        ((8, 2, 64), (8, 96, 3), ("[8, 2, 64]", "[8, 96, 3]")),
    ],
)
def test_gguf_adapters_that_cannot_be(file: GGUFFile, tmp_path: Path, a, b, words) -> None:
    from edgellm.formats.gguf import GGUFWriter
    from edgellm.quants import FORMATS

    metadata = {"general.architecture": "olmoe", "general.type": "adapter", "adapter.type": "lora"}
    name = "blk.0.ffn_up_exps.weight"
    entries = [(f"{name}.lora_{side}", s, FORMATS["F32"], np.ones(s, np.float32)) for side, s in (("a", a), ("b", b))]
    GGUFWriter(tmp_path / "a.gguf", metadata, entries).write()
    refused(tmp_path / "a.gguf", file, FormatError, *words)


def test_an_adapter_that_peft_has_no_form_for(plain: Adapter, file: GGUFFile, tmp_path: Path) -> None:
    change = next(iter(plain.weights.values()))
    longer = replace(change, magnitude=np.ones(change.shape[:2], np.float32))
    with pytest.raises(FormatError, match=r"experts with a magnitude \(DoRA\)"):
        save_adapter(tmp_path, Adapter("olmoe", {"blk.0.ffn_up_exps.weight": longer}), file.metadata)
    with pytest.raises(UsageError, match=r"no place for 'blk\.0\.attn_k_b\.weight'"):
        save_adapter(tmp_path, Adapter("olmoe", {"blk.0.attn_k_b.weight": change}), file.metadata)
    assert not list(tmp_path.iterdir()) and issubclass(FormatError, EdgellmError)
