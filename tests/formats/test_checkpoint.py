from __future__ import annotations

import gc
import json
import os
import weakref

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, FileProblem, FormatError
from edgellm.formats.checkpoint import open_checkpoint

from .test_fuzz import mutate
from .trained import values

TENSORS = {f"layer.{i}": values((2, 3), torch.float32, seed=i) for i in range(4)}
TENSORS["ids"] = torch.arange(3)
SHARDS = [{"layer.0", "ids"}, {"layer.1", "layer.2"}, {"layer.3"}]
KINDS = ("safetensors", "bin")


def save(tensors, path) -> None:
    save_file = torch.save if path.suffix == ".bin" else safetensors.torch.save_file
    save_file(dict(tensors), path)


def shard_name(i: int, kind: str) -> str:
    return f"{'model' if kind == 'safetensors' else 'pytorch_model'}-0000{i + 1}-of-00003.{kind}"


def index_path(folder, kind: str):
    return folder / ("model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json")


def sharded(folder, kind: str, change=lambda weight_map: None):
    """A folder with three shards and an index, whose weight_map `change` may spoil."""
    weight_map = {}
    for i, names in enumerate(SHARDS):
        save({name: TENSORS[name] for name in sorted(names)}, folder / shard_name(i, kind))
        weight_map |= {name: shard_name(i, kind) for name in sorted(names)}
    weight_map = change(weight_map) or weight_map
    index_path(folder, kind).write_text(json.dumps({"metadata": {"total_size": 1.5}, "weight_map": weight_map}))
    return folder


def check(checkpoint) -> None:
    assert checkpoint.tensors.keys() == TENSORS.keys() - {"ids"}
    assert checkpoint.others == {"ids": "I64"}
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.dequantize(), TENSORS[name].numpy())


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("model", "model.safetensors"),
        ("model", "pytorch_model.bin"),
        ("adapter_model", "adapter_model.safetensors"),
        ("adapter_model", "adapter_model.bin"),
    ],
)
def test_single_files(tmp_path, stem, name):
    save(TENSORS, tmp_path / name)
    with open_checkpoint(tmp_path, stem) as checkpoint:
        assert checkpoint.path == tmp_path / name
        assert checkpoint.n_bytes == (tmp_path / name).stat().st_size
        check(checkpoint)
    assert not checkpoint.tensors
    assert not checkpoint.others


@pytest.mark.parametrize("kind", KINDS)
def test_shards(tmp_path, kind):
    checkpoint = open_checkpoint(sharded(tmp_path, kind))
    check(checkpoint)
    assert checkpoint.path == index_path(tmp_path, kind)
    assert checkpoint.n_bytes == sum((tmp_path / shard_name(i, kind)).stat().st_size for i in range(3))
    assert list(checkpoint.tensors) == [f"layer.{i}" for i in range(4)]


def test_what_transformers_saves_in_shards(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**size, vocab_size=50, tie_word_embeddings=False))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(checkpoint.tensors[name].dequantize(), tensor.numpy(), strict=True)


def test_safetensors_come_first(tmp_path):
    sharded(tmp_path, "bin")
    save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).tensors.keys() == {"a"}
    sharded(tmp_path, "safetensors")
    check(open_checkpoint(tmp_path))
    save({"b": torch.ones(1)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).tensors.keys() == {"b"}


def test_closing_lets_go_of_the_mapping_with_the_last_array(tmp_path):
    save(TENSORS, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    tensor = checkpoint.tensors["layer.0"]
    whole = tensor.raw
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    alive = weakref.ref(whole)
    checkpoint.close()
    del whole
    np.testing.assert_array_equal(tensor.dequantize(), TENSORS["layer.0"].numpy())
    del tensor
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("kind", KINDS)
def test_missing_shards_are_named(tmp_path, kind):
    sharded(tmp_path, kind)
    os.unlink(tmp_path / shard_name(0, kind))
    os.unlink(tmp_path / shard_name(2, kind))
    os.symlink("nowhere", tmp_path / shard_name(2, kind))  # how a hub cache holds what it has not fetched
    message = f"lacks 2 of 3 shards: '{shard_name(0, kind)}', '{shard_name(2, kind)}'"
    with pytest.raises(FileProblem, match=message):
        open_checkpoint(tmp_path)


def test_links_to_files_elsewhere_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save(TENSORS, tmp_path / "blobs" / "model.safetensors")
    os.symlink("../blobs/model.safetensors", tmp_path / "snapshot" / "model.safetensors")
    check(open_checkpoint(tmp_path / "snapshot"))
    os.unlink(tmp_path / "blobs" / "model.safetensors")
    with pytest.raises(FileProblem, match=r"model\.safetensors does not exist"):
        open_checkpoint(tmp_path / "snapshot")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "sub/x",
        "./x",
        "C:x",
        "C:\\x",
        "..\\x",
        "\\\\host\\share\\x",
        "..",
        ".",
        "",
        "a\0",
        "a\n",
        "\ud800",
    ],
)
def test_a_shard_is_a_file_beside_its_index(tmp_path, kind, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save(TENSORS, tmp_path / f"x.{kind}")  # what such a name would reach is there
    (folder / "sub").mkdir()
    save(TENSORS, folder / "sub" / f"x.{kind}")
    named = f"{name}.{kind}" if name not in (".", "..", "") else name
    sharded(folder, kind, lambda weight_map: weight_map | {"layer.3": named})
    with pytest.raises(FormatError, match="as a shard; expected the name of a") as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"layer.9": m["layer.0"]}, "it says that tensor 'layer.9' is in .*, which does not hold it"),
        (lambda m: m | {"layer.0": m["layer.3"]}, "it says that tensor 'layer.0' is in .*, which does not hold it"),
        (lambda m: m | {"layer.0": "config.json"}, "it names 'config.json' as a shard; expected the name of a"),
        (lambda m: m | {"layer.0": 3}, "something else than a file's name"),
        (lambda m: m | {"layer.0": [m["layer.0"]]}, "something else than a file's name"),
        (lambda m: [m], "weight_map is missing, empty or no object"),
        (lambda m: "model", "weight_map is missing, empty or no object"),
    ],
)
def test_hostile_indexes(tmp_path, kind, change, message):
    with pytest.raises(FormatError, match=message) as caught:
        open_checkpoint(sharded(tmp_path, kind, change))
    assert str(caught.value).startswith(str(index_path(tmp_path, kind)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a shard index"),
        ("[]", "its JSON is a list; expected an object"),
        ("{}", "weight_map is missing"),
        ('{"weight_map": {}}', "weight_map is missing, empty"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' appears twice"),
        ('{"weight_map": ', "malformed"),
        ('{"weight_map": ' + "[" * 100_000, "nested too deeply"),
        ('{"weight_map": {"a": NaN}}', "NaN, which is no number"),
    ],
)
def test_indexes_that_are_none(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path)


def test_an_index_of_any_size_is_not_read(tmp_path):
    with open(tmp_path / "model.safetensors.index.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="edgellm reads at most 100000000"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_in_two_shards(tmp_path, kind):
    sharded(tmp_path, kind)
    save({"layer.3": torch.ones(1), "layer.0": torch.ones(1)}, tmp_path / shard_name(2, kind))
    with pytest.raises(FormatError, match=r"tensor 'layer\.0' is in two shards, .*00001.* and .*00003"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_cut_off(tmp_path, kind):
    shard = sharded(tmp_path, kind) / shard_name(1, kind)
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(FormatError, match="cut off") as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).startswith(str(shard))


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([], "it is empty"),
        (["config.json", "tokenizer.json"], "it holds 'config.json', 'tokenizer.json'$"),
        ([f"{i:02}" for i in range(20)], "'07' and 12 more"),
        (["model-q4.gguf"], "a GGUF file is converted already"),
        (["consolidated.00.pth"], "Meta's original weights"),
        (["consolidated.safetensors"], "Mistral's own form"),
        (["adapter_model.safetensors"], "it holds an adapter, not a model"),
        (["model-00001-of-00002.safetensors"], r"index, a file ending in \.index\.json, is missing"),
        (["a\nb"], r"'a\\nb'"),
    ],
)
def test_a_folder_without_weights(tmp_path, present, message):
    for name in present:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileProblem, match=message) as caught:
        open_checkpoint(tmp_path)
    expected = (
        "has no model.safetensors, model.safetensors.index.json, pytorch_model.bin or pytorch_model.bin.index.json"
    )
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path):
    with pytest.raises(FileProblem, match="does not exist; expected a folder"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileProblem, match="is not a folder"):
        open_checkpoint(tmp_path / "file")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["flip", "delete", "repeat"]), st.integers(0, 400), st.integers(1, 60)),
        min_size=1,
        max_size=3,
    )
)
def test_mutated_indexes(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("model")
    content = index_path(sharded(folder, "safetensors"), "safetensors").read_bytes()
    for change in changes:
        content = mutate(content, *change)
    index_path(folder, "safetensors").write_bytes(content)
    try:
        open_checkpoint(folder).close()
    except EdgellmError as error:
        assert "\n" not in str(error)
