from __future__ import annotations

import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.safetensors import read_safetensors, write_safetensors
from edgellm.quants import FORMATS

from .test_fuzz import mutate, small_or_huge
from .trained import OTHERS, WEIGHTS, bytes_of, mapped, values

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
any_settings = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def file_of(path, header, data: bytes = b"", length: int | None = None):
    """A safetensors file, right or wrong; `header` is an object, its text or its bytes."""
    text = header if isinstance(header, (str, bytes)) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@any_settings
@given(st.dictionaries(names, st.tuples(st.sampled_from([*WEIGHTS, *OTHERS]), shapes), max_size=6))
def test_we_read_what_safetensors_writes(tmp_path, wanted):
    built = {name: values(shape, (WEIGHTS | OTHERS)[dtype]) for name, (dtype, shape) in wanted.items()}
    safetensors.torch.save_file(built, tmp_path / "model.safetensors", {"format": "pt"})
    found = read_safetensors(tmp_path / "model.safetensors")
    assert found.others == {name: dtype for name, (dtype, _) in wanted.items() if dtype in OTHERS}
    assert found.tensors.keys() == {name for name, (dtype, _) in wanted.items() if dtype in WEIGHTS}
    assert found.n_bytes == (tmp_path / "model.safetensors").stat().st_size
    for name, tensor in found.tensors.items():
        dtype, shape = wanted[name]
        assert (tensor.name, tensor.shape, tensor.format) == (name, shape, FORMATS[dtype])
        assert tensor.raw.tobytes() == bytes_of(built[name])
        assert tensor.raw.shape[-1:] == (FORMATS[dtype].row_bytes(shape[-1] if shape else 1),)
        assert tensor.raw.ndim == (2 if len(shape) > 1 else 1)
        np.testing.assert_array_equal(tensor.dequantize(), built[name].float().numpy())


@any_settings
@given(
    st.dictionaries(names, st.tuples(st.sampled_from([*WEIGHTS]), shapes), max_size=6),
    st.sampled_from(["array", "bytes", "callable", "pieces"]),
    st.sampled_from([1, 50, 5e9]),
)
def test_safetensors_and_we_read_what_we_write(tmp_path_factory, wanted, how, shard_bytes):
    folder = tmp_path_factory.mktemp("model")
    built = {name: values(shape, WEIGHTS[dtype]) for name, (dtype, shape) in wanted.items()}

    def source(name):
        raw = bytes_of(built[name])
        cut = len(raw) // 2
        return {
            "array": np.frombuffer(raw, FORMATS[wanted[name][0]].layout),
            "bytes": raw,
            "callable": lambda: np.frombuffer(raw, np.uint8).reshape(1, -1),
            "pieces": lambda: iter([raw[:cut], np.frombuffer(raw[cut:], np.uint8)]),
        }[how]

    tensors = ((name, shape, FORMATS[dtype], source(name)) for name, (dtype, shape) in wanted.items())
    paths = write_safetensors(folder, tensors, shard_bytes)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    theirs = {}
    for path in paths:
        if path.suffix == ".safetensors":
            theirs |= safetensors.torch.load_file(path)
            with safetensors.safe_open(path, "pt") as opened:
                assert opened.metadata() == {"format": "pt"}
    with open_checkpoint(folder) as ours:
        assert theirs.keys() == ours.tensors.keys() == built.keys()
        for name, tensor in built.items():
            assert (theirs[name].dtype, theirs[name].shape) == (tensor.dtype, tensor.shape)
            assert bytes_of(theirs[name]) == ours.tensors[name].raw.tobytes() == bytes_of(tensor)
            assert ours.tensors[name].shape == tuple(tensor.shape)


def test_tensors_view_the_file_in_its_order(tmp_path):
    safetensors.torch.save_file({f"t{i}": values((40 - i, 3), torch.float32) for i in range(20)}, tmp_path / "m")
    tensors = read_safetensors(tmp_path / "m").tensors
    addresses = [tensor.address for tensor in tensors.values()]
    assert addresses == sorted(addresses)
    for tensor in tensors.values():
        assert mapped(tensor.raw)
        assert not tensor.raw.flags.writeable


def test_shards_hold_at_most_what_is_asked_and_their_index_is_that_of_the_field(tmp_path):
    built = [(f"t{i}", (25,), FORMATS["F32"], bytes(100)) for i in range(5)] + [
        ("big", (99,), FORMATS["F32"], bytes(396))
    ]
    paths = write_safetensors(tmp_path, built, shard_bytes=250, metadata={})
    assert [path.name for path in paths] == [
        *(f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)),
        "model.safetensors.index.json",
    ]
    index = json.loads(paths[-1].read_text())
    assert index["metadata"] == {"total_size": 896}
    assert [index["weight_map"][name] for name, *_ in built] == [paths[i].name for i in (0, 0, 1, 1, 2, 3)]


def test_each_tensor_lies_at_a_multiple_of_its_numbers_size(tmp_path):
    tensors = [("odd", (3,), FORMATS["BF16"], bytes(6)), ("x", (1,), FORMATS["F32"], bytes(4))]
    (path,) = write_safetensors(tmp_path, tensors, metadata={"a": "b"})
    for tensor in read_safetensors(path).tensors.values():  # a mapping starts at a page
        assert tensor.address % tensor.format.block_bytes == 0


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    n = 1 << 20
    tensors = [(f"t{i}", (n,), FORMATS["F32"], lambda i=i: np.full(n, i, np.float32)) for i in range(6)]
    tracemalloc.start()
    try:
        write_safetensors(tmp_path, tensors, shard_bytes=3 * 4 * n)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * 4 * n
    finally:
        tracemalloc.stop()
    with open_checkpoint(tmp_path) as checkpoint:
        assert [tensor.dequantize().mean() for tensor in checkpoint.tensors.values()] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(28, "No space left on device"), "short"])
@pytest.mark.parametrize("shard_bytes", [50, 5e9])
def test_when_a_later_tensor_fails_nothing_stays(tmp_path, problem, shard_bytes):
    def fail():
        if problem == "short":
            return bytes(39)
        raise problem

    (tmp_path / "config.json").write_text("{}")
    tensors = [(f"t{i}", (10,), FORMATS["F32"], fail if i == 2 else bytes(40)) for i in range(4)]
    with pytest.raises(UsageError if problem == "short" else (KeyboardInterrupt, OSError)):
        write_safetensors(tmp_path, tensors, shard_bytes)
    assert os.listdir(tmp_path) == ["config.json"]


def test_nothing_stays_when_the_index_cannot_be_written(tmp_path, monkeypatch):
    rename = os.replace

    def replace(source, target):
        if str(target).endswith(".json"):
            raise PermissionError(13, "Permission denied", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        write_safetensors(tmp_path, [(f"t{i}", (1,), FORMATS["F32"], bytes(4)) for i in range(2)], shard_bytes=4)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "present", ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
)
def test_weights_that_are_there_are_never_mixed_with_new_ones(tmp_path, present):
    (tmp_path / present).write_text("old")
    with pytest.raises(UsageError, match=f"already holds {present}"):
        write_safetensors(tmp_path, [("a", (1,), FORMATS["F32"], bytes(4))])
    assert (tmp_path / present).read_text() == "old"
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", (1,), "F32", bytes(4))] * 2, "'a' appears twice"),
        ([("__metadata__", (1,), "F32", bytes(4))], "keeps for itself"),
        ([("a", (32,), "Q8_0", bytes(34))], "'a' is Q8_0; safetensors files hold F32, F16 and BF16"),
        ([("a", (-1,), "F32", bytes(4))], "'a': its shape"),
        ([("a", (2,), "F32", bytes(4))], "'a' was given 4 bytes; it has 8"),
        ([("a", (2,), "F32", lambda: iter([bytes(4), bytes(8)]))], "'a' was given 12 bytes; it has 8"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, tensors, message):
    with pytest.raises(UsageError, match=message):
        write_safetensors(tmp_path, [(name, shape, FORMATS[kind], raw) for name, shape, kind, raw in tensors])
    assert os.listdir(tmp_path) == []


HOSTILE = {
    "no object": (b"[]", b"", "starts with b'\\['"),
    "space before the object": (b" {}", b"", "starts with b' '"),
    "not JSON": (b"{a", b"", "malformed"),
    "cut JSON": (b'{"a": {"dtype"', b"", "malformed"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not UTF-8 at byte 2"),
    "a name twice": ('{"a": 1, "a": 2}', b"", "'a' appears twice"),
    "a key twice": ('{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "'dtype' appears twice"),
    "deep lists": ("{" + '"a":' + "[" * 100000, b"", "nested too deeply"),
    "deep objects": ('{"a":' * 100000, b"", "nested too deeply"),
    "many values": ('{"a": [' + "0," * (1 << 21) + "0]}", b"", "more than 2097152 values"),
    "NaN": ('{"a": NaN}', b"", "NaN, which is no number"),
    "infinite shape": ('{"a": {"dtype": "F32", "shape": [-Infinity], "data_offsets": [0, 8]}}', b"", "Infinity"),
    "endless number": ('{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + "]}}", b"", "5000 digits"),
    "metadata number": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "metadata list": ({"__metadata__": []}, b"", "__metadata__"),
    "metadata null": ({"__metadata__": {"a": None}}, b"", "__metadata__"),
    "entry is no object": ({"a": 3}, b"", "tensor 'a': its entry"),
    "entry lacks a key": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "tensor 'a': its entry"),
    "entry has another key": ({"a": entry() | {"b": 1}}, bytes(8), "tensor 'a': its entry"),
    "dtype is a number": ({"a": entry(dtype=3)}, bytes(8), "tensor 'a': its dtype is no text"),
    "shape is a text": ({"a": entry() | {"shape": "22"}}, bytes(8), "tensor 'a': its dtype is no text"),
    "three offsets": ({"a": entry(offsets=(0, 4, 8))}, bytes(8), "data_offsets are not two"),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, bytes(8), "not two whole numbers"),
    "true offset": ({"a": entry(offsets=(True, 9))}, bytes(9), "not two whole numbers"),
    "float offset": ({"a": entry(offsets=(0, 8.0))}, bytes(8), "not two whole numbers"),
    "backward offsets": ({"a": entry(offsets=(8, 0))}, bytes(8), "not two whole numbers"),
    "negative dim": ({"a": entry(shape=(-2,))}, bytes(8), "whole numbers from 0"),
    "float dim": ({"a": entry(shape=(2.0,))}, bytes(8), "whole numbers from 0"),
    "true dim": ({"a": entry(shape=(True, 2))}, bytes(8), "whole numbers from 0"),
    "overflowing shape": ({"a": entry(shape=(2**32, 2**32, 2))}, bytes(8), "more elements than any file"),
    "overflow behind a zero": ({"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b"", "more elements than any"),
    "shape of 64 bits": ({"a": entry(shape=(2**64 - 1,))}, bytes(8), "more elements than any file"),
    "many dims": ({"a": entry(shape=(1,) * 17)}, bytes(4), "17 dimensions"),
    "too few bytes": ({"a": entry(shape=(3,))}, bytes(8), r"hold 8 bytes; F32 \[3\] takes 12 bytes"),
    "half a byte": ({"a": entry("F4", (3,), (0, 1))}, bytes(1), "no whole number of bytes"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), "'a' and 'b' overlap"),
    "same place": ({"a": entry(), "b": entry()}, bytes(8), "'a' and 'b' overlap"),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), "4 bytes between 'a' and 'b' belong to no tensor"),
    "gap at the start": ({"a": entry(offsets=(4, 12))}, bytes(12), "4 bytes between the header and 'a'"),
    "cut off": ({"a": entry()}, bytes(7), "cut off: tensor 'a' ends at byte 8 of the data, there are 7"),
    "trailing": ({"a": entry()}, bytes(9), "1 bytes after 'a' belong to no tensor"),
    "only trailing": ({}, bytes(9), "9 bytes after the header belong to no tensor"),
    "far away": ({"a": entry(offsets=(2**63, 2**63 + 8))}, bytes(8), "belong to no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(tmp_path, case):
    header, data, message = HOSTILE[case]
    path = file_of(tmp_path / "m.safetensors", header, data)
    with pytest.raises(FormatError, match=message) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a safetensors file"),
        (b"1234567", "7 bytes, too few"),
        (struct.pack("<Q", 100_000_001) + b"{}", "at most 100000000"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "at most 100000000"),
        (struct.pack("<Q", 3) + b"{}", "cut off: its header ends at byte 11, the file has 10"),
        (struct.pack("<Q", 0), "starts with b''"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    ],
)
def test_no_safetensors_files(tmp_path, content, message):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(FileProblem, match=message):
        read_safetensors(tmp_path / "m")


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileProblem, match="does not exist"):
        read_safetensors(tmp_path / "m")
    with pytest.raises(FileProblem, match="is not a file but a folder"):
        read_safetensors(tmp_path)


def test_an_unknown_dtype_is_refused_by_name(tmp_path):
    file_of(tmp_path / "m", {"layer": entry("F3")}, bytes(8))
    with pytest.raises(UnsupportedError, match="tensor 'layer': its dtype 'F3' is unknown"):
        read_safetensors(tmp_path / "m")


def test_a_header_may_end_in_spaces_and_a_tensor_lie_at_odd_bytes(tmp_path):
    file_of(tmp_path / "m", '{"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}  ', np.float32(7).tobytes())
    assert read_safetensors(tmp_path / "m").tensors["a"].dequantize().tolist() == [[7]]


def small_file() -> bytes:
    built = {f"t.{name}": values((2, 3), dtype) for name, dtype in (WEIGHTS | OTHERS).items()}
    return safetensors.torch.save(built, {"format": "pt"})


SMALL = small_file()
positions = st.integers(0, len(SMALL))
mutations = st.one_of(
    st.tuples(st.just("flip"), positions, st.integers(1, 255)),
    st.tuples(st.just("number"), positions, small_or_huge),
    st.tuples(st.just("insert"), positions, st.sampled_from([b"0", b"-", b"9" * 9, b"[", b"{", b'"', b",", b"\xff"])),
    st.tuples(st.just("delete"), positions, st.integers(1, 64)),
    st.tuples(st.just("cut"), positions, st.none()),
    st.tuples(st.just("repeat"), positions, st.integers(1, 200)),
)


@settings(any_settings, max_examples=400)
@given(st.lists(mutations, min_size=1, max_size=3))
def test_mutated_files(tmp_path, changes):
    content = SMALL
    for change in changes:
        content = mutate(content, *change)
    (tmp_path / "m").write_bytes(content)
    try:
        found = read_safetensors(tmp_path / "m")
    except EdgellmError as error:
        assert "\n" not in str(error)
    else:
        for tensor in found.tensors.values():
            assert tensor.dequantize().shape == tensor.shape
