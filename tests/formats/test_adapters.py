"""Adapters as files: what goes out comes in again, PEFT reads what is written, and hostile files are refused."""

from __future__ import annotations

import json
import shutil
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

import edgellm
from edgellm.arch.adapters import read_adapter, save_adapter
from edgellm.errors import EdgellmError, FormatError, UnsupportedError, UsageError
from edgellm.formats.adapters import Adapter, LowRank, Naming
from edgellm.formats.adapters.gguf import read_gguf_adapter, write_gguf_adapter
from edgellm.formats.adapters.peft import read_peft, write_peft
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.quants import FORMATS
from tests import peft_models
from tests.convert.checkpoints import edit_json

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora, patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 9}},
    "dora": {"use_dora": True, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    "whole, embeddings": {"target_modules": ["embed_tokens", "v_proj"], "modules_to_save": ["lm_head", "model.norm"]},
    "biases": {"bias": "all", "target_modules": ["q_proj", "o_proj"]},
}
PLAIN = ["lora", "rslora, patterns"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama, and an adapter of each kind under its name."""
    folder = tmp_path_factory.mktemp("llama")
    peft_models.save_base("llama", folder)
    for seed, (name, kind) in enumerate(KINDS.items()):
        peft_models.save_adapter(folder, name, seed, **kind)
    return folder


@pytest.fixture
def file(folder: Path) -> Any:
    with GGUFFile.open(folder / "base.gguf") as file:
        yield file


def same(a: Adapter, b: Adapter, rtol: float = 0.0) -> None:
    assert a.weights.keys() == b.weights.keys() and a.replaced.keys() == b.replaced.keys()
    for name, change in a.weights.items():
        np.testing.assert_allclose(change.added(), b.weights[name].added(), rtol=rtol, atol=rtol)
        first, second = change.magnitude, b.weights[name].magnitude
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            np.testing.assert_array_equal(first, second)
    for name, x in a.replaced.items():
        np.testing.assert_array_equal(x, b.replaced[name])


# --- round trips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_written_is_one_of_peft(folder: Path, file: GGUFFile, tmp_path: Path, kind: str) -> None:
    """PEFT computes the same with it, and all settings are those that it had."""
    adapter = read_adapter(folder / kind, file.metadata, file.tensors)
    save_adapter(tmp_path / "again", adapter, file.metadata)
    same(adapter, read_adapter(tmp_path / "again", file.metadata, file.tensors))
    theirs, ours = (load_file(path / "adapter_model.safetensors") for path in (folder / kind, tmp_path / "again"))
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name
    assert {name for name in theirs.keys() - ours.keys() if ".base_layer." not in name} == set()
    model = PeftModel.from_pretrained(peft_models.base_of(folder), tmp_path / "again").eval()  # a warning is an error
    expected = peft_models.logits(peft_models.with_adapters(folder, kind))
    np.testing.assert_allclose(peft_models.logits(model), expected, atol=1e-6)


def test_settings_that_are_written(folder: Path, file: GGUFFile, tmp_path: Path) -> None:
    adapter = read_adapter(folder / "rslora, patterns", file.metadata, file.tensors)
    save_adapter(tmp_path, replace(adapter, base_name="some-model", dropout=0.1), file.metadata)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    assert config["r"] == 4 and config["lora_alpha"] == 6 and config["use_rslora"] is True
    assert config["rank_pattern"] == dict.fromkeys(modules, 2)
    assert set(config["alpha_pattern"].values()) == {9}
    assert config["target_modules"] == sorted(peft_models.ALL)
    assert config["base_model_name_or_path"] == "some-model" and config["lora_dropout"] == 0.1
    some = {name: change for name, change in adapter.weights.items() if not name.startswith("blk.1.attn_q")}
    save_adapter(tmp_path, replace(adapter, weights=some), file.metadata)
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert set(modules) & set(targets) == {modules[0], modules[2]} and "q_proj" not in targets


@pytest.mark.parametrize("kind", PLAIN)
def test_a_gguf_adapter_that_is_written_is_read_again(folder: Path, file: GGUFFile, tmp_path: Path, kind: str) -> None:
    adapter = replace(read_adapter(folder / kind, file.metadata, file.tensors), base_name="some-model")
    write_gguf_adapter(tmp_path / "a.gguf", adapter)
    again = read_gguf_adapter(tmp_path / "a.gguf")
    same(adapter, again, rtol=1e-6)
    assert (again.architecture, again.name, again.base_name) == ("llama", kind, "some-model")
    with GGUFFile.open(tmp_path / "a.gguf") as written:
        assert written.get("general.type", str) == "adapter" and written.get("adapter.type", str) == "lora"
        a, b = (written.tensors[f"blk.0.attn_v.weight.lora_{side}"] for side in "ab")
        change = adapter.weights["blk.0.attn_v.weight"]
        assert (a.shape, b.shape) == ((change.rank, 64), (32, change.rank))


def test_a_gguf_adapter_becomes_a_folder_of_peft(folder: Path, file: GGUFFile, tmp_path: Path) -> None:
    adapter = read_adapter(folder / "lora", file.metadata, file.tensors)
    write_gguf_adapter(tmp_path / "a.gguf", adapter)
    edgellm.export_checkpoint(tmp_path / "a.gguf", tmp_path / "out", base=folder / "base.gguf")
    same(adapter, read_adapter(tmp_path / "out", file.metadata, file.tensors), rtol=1e-6)
    model = PeftModel.from_pretrained(peft_models.base_of(folder), tmp_path / "out").eval()
    expected = peft_models.logits(peft_models.with_adapters(folder, "lora"))
    np.testing.assert_allclose(peft_models.logits(model), expected, atol=1e-5)
    with pytest.raises(UnsupportedError, match="the file is an adapter; run the model that it was made for"):
        edgellm.load(tmp_path / "a.gguf")
    with pytest.raises(UsageError, match="holds no model"):
        edgellm.merge_adapters(tmp_path / "a.gguf", [folder / "lora"], tmp_path / "merged.gguf")
    with pytest.raises(UsageError, match="name the GGUF file of the model that it was made for"):
        edgellm.export_checkpoint(tmp_path / "a.gguf", tmp_path / "other")
    with pytest.raises(UsageError, match="is no adapter"):
        edgellm.export_checkpoint(folder / "base.gguf", tmp_path / "other", base=folder / "base.gguf")
    assert not (tmp_path / "other").exists()


def test_embeddings_stand_the_other_way_round_in_gguf(tmp_path: Path) -> None:
    """As llama.cpp has them: `.lora_a` is looked up."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8), (30, 2)))
    adapter = Adapter("llama", {"token_embd.weight": LowRank(a, b, 1.5)})
    write_gguf_adapter(tmp_path / "a.gguf", adapter)
    with GGUFFile.open(tmp_path / "a.gguf") as written:
        shapes = {name: tensor.shape for name, tensor in written.tensors.items()}
    assert shapes == {"token_embd.weight.lora_a": (30, 2), "token_embd.weight.lora_b": (8, 2)}
    same(adapter, read_gguf_adapter(tmp_path / "a.gguf"))


@pytest.mark.parametrize("kind", ["dora", "whole, embeddings"])
def test_what_a_gguf_adapter_cannot_hold(folder: Path, file: GGUFFile, tmp_path: Path, kind: str) -> None:
    adapter = read_adapter(folder / kind, file.metadata, file.tensors)
    with pytest.raises(UsageError, match="cannot hold; merge it instead"):
        write_gguf_adapter(tmp_path / "a.gguf", adapter)
    assert not list(tmp_path.iterdir())


def test_an_adapter_as_llama_cpp_writes_it(tmp_path: Path) -> None:
    """In float16, without alpha (its scale is 1 then), and with a whole norm beside."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float16) for shape in ((2, 64), (32, 2)))
    norm = rng.normal(size=64).astype(np.float32)
    f16 = FORMATS["F16"]
    metadata: dict[str, Any] = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    tensors = [("blk.0.attn_v.weight.lora_a", a.shape, f16, a), ("blk.0.attn_v.weight.lora_b", b.shape, f16, b),
               ("blk.0.attn_norm.weight", (64,), FORMATS["F32"], norm)]  # fmt: skip
    for alpha, scale in ((None, 1.0), (0.0, 1.0), (3.0, 1.5)):
        more = {} if alpha is None else {"adapter.lora.alpha": alpha}
        GGUFWriter(tmp_path / "a.gguf", metadata | more, tensors).write()
        adapter = read_gguf_adapter(tmp_path / "a.gguf")
        change = adapter.weights["blk.0.attn_v.weight"]
        assert change.scale == scale
        np.testing.assert_array_equal(change.a, a)
        np.testing.assert_array_equal(change.b, b)
        np.testing.assert_array_equal(adapter.replaced["blk.0.attn_norm.weight"], norm)


NAMING = Naming({"a.weight": "x.a.weight", "b.weight": "x.b.weight", "a.bias": "x.a.bias"},
                {"a.weight": np.int32([2, 0, 3, 1]), "a.bias": np.int32([2, 0, 3, 1])}, {"b.weight": 1.0})  # fmt: skip
NUMBERS = st.floats(-2, 2, width=32)


@settings(max_examples=25)
@given(
    rank=st.integers(1, 5), scale=st.floats(0.015625, 100, width=32), rows=st.lists(NUMBERS, min_size=4, max_size=4),
    stabilized=st.booleans(), is_dora=st.booleans(), has_bias=st.booleans(),
)  # fmt: skip
def test_any_adapter_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rank: int, scale: float, rows: list[float], stabilized: bool,
    is_dora: bool, has_bias: bool,
) -> None:  # fmt: skip
    row, columns = np.float32(rows), np.float32([1, 2, 3])
    a, b = np.outer(np.arange(1, rank + 1, dtype=np.float32), columns), np.outer(row, np.ones(rank, np.float32))
    change = LowRank(a, b, scale, np.abs(row) if is_dora else None)
    adapter = Adapter("any", {"a.weight": change}, {"a.bias": row} if has_bias else {}, rank_stabilized=stabilized)
    folder = tmp_path_factory.mktemp("adapter")
    write_peft(folder, adapter, NAMING)
    again = read_peft(folder, "any", NAMING)
    same(adapter, again, rtol=1e-6)
    assert again.weights["a.weight"].scale == pytest.approx(scale, rel=1e-12)


# --- hostile files ------------------------------------------------------------------------------------------------


def refused(path: Path, file: GGUFFile, kind: type[EdgellmError], *words: str) -> None:
    with pytest.raises(kind) as raised:
        read_adapter(path, file.metadata, file.tensors)
    message = str(raised.value)
    assert "\n" not in message and message.startswith(str(path)) and len(message) < 1000
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, ("IA3", "LORA")),
        ({"alora_invocation_tokens": [1]}, UnsupportedError, ("alora_invocation_tokens",)),
        ({"trainable_token_indices": [5]}, UnsupportedError, ("trainable_token_indices",)),
        ({"layer_replication": [[0, 2]]}, UnsupportedError, ("layer_replication",)),
        ({"target_parameters": ["x"]}, UnsupportedError, ("target_parameters",)),
        ({"lora_bias": True}, UnsupportedError, ("lora_bias",)),
        ({"init_lora_weights": "olora"}, UnsupportedError, ("olora", "path_initial_model_for_weight_conversion")),
        ({"use_dora": "yes"}, FormatError, ("use_dora", "true or false")),
        ({"use_dora": True}, FormatError, ("lora_magnitude_vector", "use_dora is true")),
        ({"modules_to_save": ["lm_head"]}, FormatError, ("modules_to_save", "'lm_head'", "holds no lm_head.weight")),
        ({"modules_to_save": ["mlp"]}, FormatError, ("modules_to_save", "'mlp'", "layers.0.mlp.gate_proj.weight")),
        ({"modules_to_save": "lm_head"}, FormatError, ("modules_to_save is 'lm_head'", "list of names")),
        ({"target_modules": 5}, FormatError, ("target_modules is 5", "list of names")),
        ({"target_modules": ["q_proj", 5]}, FormatError, ("target_modules is ['q_proj', 5]", "list of names")),
        ({"exclude_modules": {"q_proj": 1}}, FormatError, ("exclude_modules is {'q_proj': 1}", "list of names")),
        ({"layers_to_transform": [0]}, FormatError, ("layers_to_transform is [0]", "model.layers.1.")),
        ({"layers_to_transform": 1}, FormatError, ("layers_to_transform is 1", "model.layers.0.")),
        ({"layers_to_transform": ["a"]}, FormatError, ("layers_to_transform", "numbers of layers")),
        ({"bias": "some"}, FormatError, ("bias is 'some'", "none, all, lora_only")),
        ({"task_type": "SEQ_CLS"}, FormatError, ("task_type is SEQ_CLS", "no score.weight")),
        ({"task_type": "TOKEN_CLS"}, UnsupportedError, ("task_type is TOKEN_CLS",)),
        ({"task_type": "POETRY"}, FormatError, ("task_type is 'POETRY'", "CAUSAL_LM")),
        ({"r": 3}, FormatError, ("rank 4", "says 3 (r)")),
        ({"r": "many"}, FormatError, ("r is 'many'",)),
        ({"rank_pattern": {"q_proj": 3}}, FormatError, ("rank 4", "says 3 (rank_pattern: q_proj)")),
        ({"rank_pattern": [1]}, FormatError, ("rank_pattern",)),
        ({"lora_alpha": 1e60}, FormatError, ("lora_alpha",)),
        ({"lora_alpha": -1}, FormatError, ("lora_alpha",)),
        ({"lora_dropout": 2}, FormatError, ("lora_dropout", "0 to 1")),
        ({"alpha_pattern": {"(a+)+$": 3}}, UnsupportedError, ("alpha_pattern", "simple patterns")),
        ({"alpha_pattern": {".*.*.*.*q_proj": 3}}, UnsupportedError, ("alpha_pattern",)),
        ({"alpha_pattern": {"(?=q_proj)": 3}}, UnsupportedError, ("alpha_pattern",)),
        ({"alpha_pattern": {"x" * 1000: 3}}, UnsupportedError, ("alpha_pattern",)),
        ({"alpha_pattern": {"(q_proj": 3}}, FormatError, ("alpha_pattern", "regular expression")),
    ],
)
def test_settings_that_cannot_be(folder: Path, file: GGUFFile, tmp_path: Path, changes, kind, words) -> None:
    shutil.copytree(folder / "lora", tmp_path / "a")
    edit_json(tmp_path / "a" / "adapter_config.json", **changes)
    refused(tmp_path / "a", file, kind, *words)


def test_settings_that_are_told(folder: Path, file: GGUFFile, tmp_path: Path) -> None:
    shutil.copytree(folder / "lora", tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    edit_json(config, of_the_future={"a": 1}, fan_in_fan_out=True, target_modules=["q_proj", "gate"], empty=None)
    notes = read_adapter(tmp_path / "a", file.metadata, file.tensors).notes
    expected = ("fan_in_fan_out is true", "of_the_future is {'a': 1}", "names 'gate'", "target_modules does not name")
    assert len(notes) == len(expected) and all(any(words in note for note in notes) for words in expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"modules_to_save": ["vision.head"]},
            "names 'vision.head', of which the adapter holds nothing",
        ),
        ({"layers_to_transform": [0, 1, 2, 5]}, "layers_to_transform names 5, of which the adapter holds nothing"),
        ({"bias": "all"}, ""),  # a Llama has none
        ({"modules_to_save": ["classifier"]}, "modules_to_save names 'classifier'"),
        ({"task_type": "FEATURE_EXTRACTION"}, ""),
        ({"layers_to_transform": []}, ""),
        ({"exclude_modules": ["k_proj", "gate"]}, "exclude_modules names k_proj, which the adapter holds: it is used"),
        ({"exclude_modules": "gate.*"}, ""),
        ({"target_modules": []}, "target_modules does not name down_proj"),
    ],
)
def test_what_settings_name_and_no_model_has_is_told(
    folder: Path, file: GGUFFile, tmp_path: Path, changes, words: str
) -> None:
    shutil.copytree(folder / "lora", tmp_path / "a")
    edit_json(tmp_path / "a" / "adapter_config.json", **changes)
    notes = read_adapter(tmp_path / "a", file.metadata, file.tensors).notes
    assert len(notes) == bool(words) and all(words in note for note in notes)


def test_embeddings_with_magnitudes_are_refused(folder: Path, file: GGUFFile, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    peft_models.save_adapter(tmp_path, "a", use_dora=True, target_modules=["embed_tokens", "q_proj"])
    refused(tmp_path / "a", file, UnsupportedError, "model.embed_tokens", "use_dora", "DoRA beside linears")


def test_a_parameter_that_is_named_is_not_told(folder: Path, file: GGUFFile, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    peft_models.save_adapter(tmp_path, "a", target_modules=["v_proj"], target_parameters=["q_proj.weight"])
    assert not read_adapter(tmp_path / "a", file.metadata, file.tensors).notes


def test_matrices_that_were_lost_are_told(folder: Path, file: GGUFFile, tmp_path: Path) -> None:
    """As when a file was cut by hand; where layers or modules are left out on purpose, nothing was lost."""
    shutil.copytree(folder / "lora", tmp_path / "a")
    path, config = tmp_path / "a" / "adapter_model.safetensors", tmp_path / "a" / "adapter_config.json"
    save_file({name: x for name, x in load_file(path).items() if "layers.1.self_attn.v_proj" not in name}, path)
    (note,) = read_adapter(tmp_path / "a", file.metadata, file.tensors).notes
    assert "target_modules names model.layers.1.self_attn.v_proj, of which the adapter holds nothing" in note
    for said in ({"layers_to_transform": [0, 1, 2]}, {"exclude_modules": ["layers.1.self_attn.v_proj"]}):
        edit_json(config, **{"layers_to_transform": None, "exclude_modules": None} | said)
        assert not read_adapter(tmp_path / "a", file.metadata, file.tensors).notes


def test_whole_weights_and_biases_that_are_named_and_not_there(tmp_path: Path) -> None:
    """They were trained: without them, the adapter is another."""
    peft_models.save_base("qwen2", tmp_path)
    names = ["lm_head", "input_layernorm"]
    peft_models.save_adapter(tmp_path, "a", 1, bias="lora_only", modules_to_save=names, target_modules=["q_proj"])
    path = tmp_path / "a" / "adapter_model.safetensors"
    whole = load_file(path)
    with GGUFFile.open(tmp_path / "base.gguf") as file:
        assert not read_adapter(tmp_path / "a", file.metadata, file.tensors).notes
        for part, words in (
            (".bias", ("bias is 'lora_only'", "holds no model.layers.0.self_attn.q_proj.bias")),
            ("lm_head", ("modules_to_save names 'lm_head'", "holds no lm_head.weight")),
            (
                "1.input_layernorm",
                ("names 'input_layernorm'", "holds no model.layers.1.input"),
            ),
        ):
            save_file({name: x for name, x in whole.items() if part not in name}, path)
            refused(tmp_path / "a", file, FormatError, *words)
        save_file({name: x for name, x in whole.items() if "1.self_attn.q_proj.base_layer.bias" not in name}, path)
        (note,) = read_adapter(tmp_path / "a", file.metadata, file.tensors).notes
        assert "of some the adapter holds nothing: model.layers.1.self_attn.q_proj.bias" in note
        save_file(whole, path)
        edit_json(tmp_path / "a" / "adapter_config.json", bias="none")
        (note,) = read_adapter(tmp_path / "a", file.metadata, file.tensors).notes
        assert "bias is 'none', and the adapter holds model.layers.0.self_attn.q_proj.bias" in note


FIRST = "base_model.model.model.layers.0.self_attn.v_proj"


@pytest.mark.parametrize(
    ("tensors", "kind", "words"),
    [
        ({f"{FIRST}.lora_B.weight": None}, FormatError, ("v_proj has lora_A; expected lora_A and lora_B",)),
        ({f"{FIRST}.lora_A.weight": torch.zeros(4, 65)}, FormatError, ("blk.0.attn_v.weight", "[32, 65]", "[32, 64]")),
        ({f"{FIRST}.lora_B.weight": torch.zeros(32, 5)}, FormatError, ("v_proj", "[4, 64]", "[32, 5]")),
        ({f"{FIRST}.lora_B.weight": torch.zeros(4)}, FormatError, ("v_proj", "[4]")),
        ({f"{FIRST}.lora_A.weight": torch.full((4, 64), float("nan"))}, FormatError, ("attn_v", "NaN")),
        ({f"{FIRST}.lora_B.weight": torch.full((32, 4), float("inf"))}, FormatError, ("attn_v", "infinity")),
        ({f"{FIRST}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int64)}, UnsupportedError, ("v_proj", "I64")),
        ({f"{FIRST}.lora_magnitude_vector": torch.zeros(32)}, FormatError, ("v_proj", "use_dora is false")),
        ({f"{FIRST.replace('0', '7')}.lora_A.weight": torch.zeros(4, 64)}, UnsupportedError, ("layers.7",)),
        ({"base_model.model.vision.lora_A.weight": torch.zeros(4, 64)}, UnsupportedError, ("vision",)),
        ({f"{FIRST}.lora_A.other.weight": torch.zeros(4, 64)}, UnsupportedError, ("lora_A.other",)),
        ({"base_model.model.score.weight": torch.zeros(2, 64)}, FormatError, ("score.weight", "[1, n_embd]")),
        ({"base_model.model.lm_head.weight": torch.zeros(2, 64)}, FormatError, ("output.weight", "[2, 64]")),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be(folder: Path, file: GGUFFile, tmp_path: Path, tensors, kind, words) -> None:
    shutil.copytree(folder / "lora", tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    found = load_file(path) | tensors
    save_file({name: x for name, x in found.items() if x is not None}, path)
    refused(tmp_path / "a", file, kind, *words)


def test_no_tensors_and_no_files(folder: Path, file: GGUFFile, tmp_path: Path) -> None:
    shutil.copytree(folder / "lora", tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({}, path)
    refused(tmp_path / "a", file, FormatError, "holds no tensors")
    path.write_bytes(b"x" * 100)
    refused(tmp_path / "a", file, FormatError)
    path.unlink()
    refused(tmp_path / "a", file, EdgellmError, "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text("[")
    refused(tmp_path / "a", file, FormatError, "adapter_config.json")


@pytest.mark.parametrize(
    ("metadata", "tensors", "kind", "words"),
    [
        ({"general.type": "model"}, {}, UnsupportedError, ("'model', and no adapter",)),
        ({"general.type": ...}, {}, UnsupportedError, ("no adapter",)),
        ({"adapter.type": "other"}, {}, UnsupportedError, ("'other'",)),
        ({"adapter.type": ...}, {}, FormatError, ("adapter.type",)),
        ({"adapter.lora.alpha": "x"}, {}, FormatError, ("adapter.lora.alpha",)),
        ({"adapter.lora.alpha": float("inf")}, {}, FormatError, ("scale",)),
        ({"general.architecture": "qwen2"}, {}, FormatError, ("'qwen2'", "'llama'")),
        ({"adapter.alora.invocation_tokens": [1]}, {}, UnsupportedError, ("adapter.alora",)),
        ({}, {"blk.0.attn_v.weight.lora_b": None}, FormatError, ("lora_a alone",)),
        ({}, {"blk.0.attn_v.weight.lora_b": (33, 2)}, FormatError, ("blk.0.attn_v.weight", "[33, 64]")),
        ({}, {"blk.0.attn_v.weight.lora_b": (32, 3)}, FormatError, ("[2, 64]", "[32, 3]")),
        ({}, {"blk.0.attn_v.weight.lora_a": (2, 64, 1)}, FormatError, ("blk.0.attn_v.weight",)),
        ({}, {"blk.0.attn_v.weight": (32, 64)}, UnsupportedError, ("blk.0.attn_v.weight", "no part of LoRA")),
        ({}, {"blk.9.attn_v.weight.lora_a": (2, 64), "blk.9.attn_v.weight.lora_b": (32, 2)}, FormatError, ("blk.9",)),
        ({}, {"blk.0.attn_norm.weight": (32,)}, FormatError, ("blk.0.attn_norm.weight", "[32]", "[64]")),
    ],
)
def test_gguf_adapters_that_cannot_be(file: GGUFFile, tmp_path: Path, metadata, tensors, kind, words) -> None:
    usual: dict[str, Any] = {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 2.0,
    }  # fmt: skip
    shapes = {"blk.0.attn_v.weight.lora_a": (2, 64), "blk.0.attn_v.weight.lora_b": (32, 2)} | tensors
    entries = [(n, s, FORMATS["F32"], np.ones(s, np.float32)) for n, s in shapes.items() if s is not None]
    found = {key: value for key, value in (usual | metadata).items() if value is not ...}
    GGUFWriter(tmp_path / "a.gguf", found, entries).write()
    refused(tmp_path / "a.gguf", file, kind, *words)


def test_an_adapter_that_peft_has_no_form_for(tmp_path: Path) -> None:
    one = np.ones((1, 3), np.float32)
    plain, dora = LowRank(one, one.T, 1.0), LowRank(one, one.T, 1.0, np.ones(3, np.float32))
    with pytest.raises(UsageError, match="all or none"):
        write_peft(tmp_path, Adapter("any", {"a.weight": plain, "b.weight": dora}), NAMING)
    with pytest.raises(UsageError, match=r"no place for 'c\.weight'"):
        write_peft(tmp_path, Adapter("any", {"c.weight": plain}), NAMING)
    assert not list(tmp_path.iterdir())
