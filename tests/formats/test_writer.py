from __future__ import annotations

import io

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import FormatError, UsageError
from edgellm.formats.gguf import GGUFFile, GGUFWriter, StringArray
from edgellm.quants import FORMATS

from .build import gguf_bytes, small_model, tensor

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
keys = st.text("abc.xyz_0ü", min_size=1, max_size=20).filter(lambda key: key != "general.alignment")
floats32 = st.floats(width=32, allow_nan=False)
values = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    floats32,
    text,
    st.lists(text, min_size=1, max_size=5),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
    st.lists(floats32, min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
shapes = st.tuples(st.lists(st.integers(1, 3), max_size=3), st.integers(1, 2))  # outer dimensions, blocks


def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, StringArray) else value


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(keys, values, max_size=6),
    tensors=st.lists(st.tuples(st.sampled_from(sorted(FORMATS)), shapes), max_size=4),
    alignment=st.sampled_from([None, 8, 32, 128]),
)
def test_what_is_written_is_read_by_us_and_by_gguf(tmp_path, metadata, tensors, alignment):
    if alignment:
        metadata["general.alignment"] = alignment
    built = [
        tensor(f"tensor {i}", (*outer, blocks * FORMATS[name].block_size), name, seed=i)
        for i, (name, (outer, blocks)) in enumerate(tensors)
    ]
    path = tmp_path / "model.gguf"
    GGUFWriter(path, metadata, built).write()

    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors} if built else {}
    with GGUFFile.open(path) as file:
        assert {key: plain(value) for key, value in file.metadata.items()} == metadata
        assert list(file.tensors) == [name for name, *_ in built]
        for name, shape, block_format, raw in built:
            read = file.tensors[name]
            assert (read.shape, read.format) == (shape, block_format)
            np.testing.assert_array_equal(read.raw.ravel(), raw.ravel())
            assert theirs[name].shape.tolist() == list(reversed(shape))
            assert theirs[name].tensor_type == block_format.ggml_type
            np.testing.assert_array_equal(theirs[name].data.reshape(-1).view(np.uint8), raw.ravel())


def test_gguf_reads_the_same_metadata(tmp_path):
    (tmp_path / "model.gguf").write_bytes(small_model())
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        for key, value in file.metadata.items():
            assert fields[key].contents() == plain(value)
        assert len(fields) == len(file.metadata) + 3  # it counts the three numbers before them


def test_we_read_what_gguf_writes(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_uint64("big", 2**50)
    writer.add_token_list(["a", "b"])
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("weights", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        assert file.metadata["big"] == 2**50 and list(file.metadata["tokenizer.ggml.tokens"]) == ["a", "b"]
        np.testing.assert_array_equal(file.tensors["weights"].dequantize(), weights)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8", "i8", "f8", "?"])
def test_numpy_values_keep_their_type(tmp_path, dtype):
    numbers = np.array([1, 0, 1], dtype)
    (tmp_path / "model.gguf").write_bytes(gguf_bytes({"array": numbers, "scalar": numbers[0]}))
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        assert file.metadata["array"].dtype == numbers.dtype
        assert file.metadata["array"].tolist() == numbers.tolist()
    kind = {"?": "BOOL", "u": "UINT", "i": "INT", "f": "FLOAT"}[dtype[0]]
    kind += str(8 * numbers.itemsize) if dtype != "?" else ""
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["scalar"].types == [gguf.GGUFValueType[kind]]


def test_metadata_that_was_read_can_be_written(tmp_path):
    (tmp_path / "model.gguf").write_bytes(small_model())
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        tensors = [(t.name, t.shape, t.format, t.raw) for t in file.tensors.values()]
        metadata = dict(file.metadata) | {"llama.attention.sliding": np.uint64(2**40)}
        assert gguf_bytes(metadata, tensors) == small_model()


def test_callables_run_while_writing_one_by_one():
    target = io.BytesIO()
    sizes = []

    def make() -> bytes:
        sizes.append(len(target.getvalue()))
        return bytes(4096)

    GGUFWriter(target, {}, [(name, (1024,), FORMATS["F32"], make) for name in "ab"]).write()
    assert sizes[1] - sizes[0] == 4096


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="'a' was given 4 bytes; it has 32"):
        GGUFWriter(path, {}, [("a", (8,), FORMATS["F32"], bytes(4))]).write()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"a": None}, [], "cannot hold a NoneType"),
        ({"a": {}}, [], "cannot hold a dict"),
        ({"a": 2**64}, [], "does not fit into 64 bits"),
        ({"a": [2**64]}, [], "does not fit into 64 bits"),
        ({"a": np.zeros((2, 2))}, [], "cannot hold an array of float64"),
        ({"a": np.complex64(1)}, [], "cannot hold a complex64"),
        ({"k" * 70000: 1}, [], "GGUF allows 65535"),
        ({"general.alignment": 24}, [], "expected a power of two"),
        ({}, [tensor("n" * 65, (8,))], "GGUF allows 64"),
        ({}, [tensor("a", (8,)), tensor("a", (8,))], "same name"),
        ({}, [("a", (1, 1, 1, 1, 1), FORMATS["F32"], bytes(4))], "up to 4 dimensions"),
        ({}, [("a", (2, 0), FORMATS["F32"], b"")], "dimensions above 0"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(metadata, tensors, message):
    with pytest.raises(UsageError, match=message):
        gguf_bytes(metadata, tensors)


def test_half_a_block_is_refused():
    with pytest.raises(FormatError, match="48 weights, not a multiple of 32"):
        gguf_bytes({}, [("a", (48,), FORMATS["Q4_0"], bytes(27))])
