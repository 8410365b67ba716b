"""Importance matrices: llama.cpp's GGUF form written and read, its older form read, and what neither may hold."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, FormatError
from edgellm.formats.gguf import GGUFWriter
from edgellm.formats.imatrix import Importance, read_imatrix, write_imatrix
from edgellm.quants import FORMATS

from .build import gguf_bytes, small_model

NAME = "blk.0.ffn_up.weight"
METADATA = {
    "general.type": "imatrix",
    "imatrix.datasets": ["calibration.txt", "more.txt"],
    "imatrix.chunk_count": 7,
    "imatrix.chunk_size": 512,
}


def numbers(name: str, *values: float, shape: tuple[int, ...] | None = None, format_name: str = "F32") -> tuple:
    x = np.array(values, np.float32)
    return name, shape or x.shape, FORMATS[format_name], FORMATS[format_name].quantize(x) if format_name != "F32" else x


def file_of(tmp_path: Path, *tensors: tuple, **changes: object) -> Path:
    path = tmp_path / "some.imatrix"
    path.write_bytes(gguf_bytes({k: v for k, v in (METADATA | changes).items() if v is not None}, tensors))
    return path


def dat(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    file = io.BytesIO()
    file.write(struct.pack("<i", len(entries)))
    for name, n_calls, values in entries:
        file.write(struct.pack("<i", len(name)) + name)
        file.write(struct.pack(f"<ii{len(values)}f", n_calls, len(values), *values))
    return file.getvalue() + tail


@pytest.fixture
def importance() -> Importance:
    rng = np.random.default_rng(0)
    tensors = {f"blk.{i}.attn_q.weight": rng.random(48, np.float32) for i in (0, 10, 2)}
    return Importance(tensors, {name: np.array([5000]) for name in tensors}, 10, 500, ("wiki.txt",))


def test_what_is_written_is_read(importance, tmp_path) -> None:
    write_imatrix(tmp_path / "x.gguf", importance)
    back = read_imatrix(tmp_path / "x.gguf")
    assert (back.n_chunks, back.chunk_size, back.datasets) == (10, 500, ("wiki.txt",))
    assert list(back.tensors) == sorted(importance.tensors) == list(back.counts)
    for name, mean in importance.tensors.items():
        np.testing.assert_allclose(back.tensors[name], mean, rtol=3e-7)  # a product and a quotient, rounded
        assert back.tensors[name].dtype == np.float32
        assert back.counts[name].tolist() == [5000]


def test_the_file_is_what_llama_cpp_writes(importance, tmp_path) -> None:
    """By the reader of the `gguf` package: names, types, dimensions and keys."""
    write_imatrix(tmp_path / "x.gguf", importance)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["wiki.txt"]
    for key, value in (("chunk_count", 10), ("chunk_size", 500)):
        field = reader.get_field(f"imatrix.{key}")
        assert (field.types, field.contents()) == ([gguf.GGUFValueType.UINT32], value)
    shapes = {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors}
    assert shapes["blk.10.attn_q.weight.in_sum2"] == ("F32", [48])
    assert shapes["blk.10.attn_q.weight.counts"] == ("F32", [1])
    sums = next(tensor.data for tensor in reader.tensors if tensor.name == "blk.10.attn_q.weight.in_sum2")
    np.testing.assert_allclose(sums, 5000 * importance.tensors["blk.10.attn_q.weight"], rtol=1e-7)


def test_a_file_of_llama_cpp(tmp_path) -> None:
    path = file_of(
        tmp_path,
        numbers(f"{NAME}.counts", 4),
        numbers(f"{NAME}.in_sum", -2, 1, 0),  # of newer versions
        numbers(f"{NAME}.in_sum2", 2, 8, 0),
    )
    found = read_imatrix(path)
    assert list(found.tensors) == [NAME]
    assert found.tensors[NAME].tolist() == [0.5, 2, 0]
    assert (found.n_chunks, found.chunk_size, found.datasets) == (7, 512, ("calibration.txt", "more.txt"))


def test_experts(tmp_path) -> None:
    sums = numbers(f"{NAME}.in_sum2", 2, 8, 3, 6, 0, 0, shape=(3, 2))
    found = read_imatrix(file_of(tmp_path, sums, numbers(f"{NAME}.counts", 4, 3, 0, shape=(3, 1))))
    assert found.tensors[NAME].tolist() == [[0.5, 2], [1, 2], [1, 1]]  # nobody asked the third
    assert found.counts[NAME].tolist() == [4, 3, 0]
    write_imatrix(tmp_path / "again.gguf", found)
    again = read_imatrix(tmp_path / "again.gguf")
    np.testing.assert_array_equal(again.tensors[NAME], found.tensors[NAME])
    together = read_imatrix(file_of(tmp_path, sums, numbers(f"{NAME}.counts", 2)))
    assert together.tensors[NAME].tolist() == [[1, 4], [1.5, 3], [0, 0]]


def test_keys_that_only_inform_may_be_missing(tmp_path) -> None:
    tensors = numbers(f"{NAME}.in_sum2", 1), numbers(f"{NAME}.counts", 1)
    path = file_of(tmp_path, *tensors, **{key: None for key in METADATA if key != "general.type"})
    found = read_imatrix(path)
    assert (found.n_chunks, found.chunk_size, found.datasets) == (0, 0, ())


SUMS = numbers(f"{NAME}.in_sum2", 1, 2)
COUNTS = numbers(f"{NAME}.counts", 4)


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ((), "it holds no tensor NAME.in_sum2; expected one for each weight"),
        ((COUNTS,), "it holds no tensor NAME.in_sum2"),
        ((SUMS,), f"tensor '{NAME}.in_sum2' comes without '{NAME}.counts'"),
        ((SUMS, numbers(f"{NAME}.counts", 0)), f"tensor '{NAME}.counts' counts no tokens"),
        ((SUMS, numbers(f"{NAME}.counts", 0.2)), f"tensor '{NAME}.counts' counts no tokens"),
        ((SUMS, numbers(f"{NAME}.counts", 4, 4)), f"tensor '{NAME}.in_sum2' has 1 rows and 2 counts"),
        ((SUMS, numbers(f"{NAME}.counts", -4)), f"tensor '{NAME}.counts' holds the negative number -4"),
        ((SUMS, numbers(f"{NAME}.counts", np.nan)), f"tensor '{NAME}.counts' holds NaN or infinity"),
        ((SUMS, numbers(f"{NAME}.counts", 1e30)), f"tensor '{NAME}.counts' counts 1e+30 tokens"),
        ((numbers(f"{NAME}.in_sum2", 1, np.nan), COUNTS), f"tensor '{NAME}.in_sum2' holds NaN or infinity"),
        ((numbers(f"{NAME}.in_sum2", 1, np.inf), COUNTS), f"tensor '{NAME}.in_sum2' holds NaN or infinity"),
        ((numbers(f"{NAME}.in_sum2", 1, -1e-9), COUNTS), f"tensor '{NAME}.in_sum2' holds the negative number -1e-09"),
        (
            (numbers(f"{NAME}.in_sum2", 1, 2, format_name="F16"), COUNTS),
            f"tensor '{NAME}.in_sum2' is F16 of shape [2]; expected F32 numbers",
        ),
        (
            (numbers(f"{NAME}.in_sum2", 1, 2, shape=(1, 1, 1, 2)), COUNTS),
            f"tensor '{NAME}.in_sum2' is F32 of shape [1, 1, 1, 2]; expected F32 numbers",
        ),
    ],
)
def test_what_is_wrong_is_named(tensors: tuple, line: str, tmp_path) -> None:
    path = file_of(tmp_path, *tensors)
    with pytest.raises(FormatError, match=re.escape(f"{path}: {line}")):
        read_imatrix(path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"general.type": "adapter"}, "it holds a 'adapter'; expected an importance matrix"),
        ({"general.type": None}, "it holds a 'model'; expected an importance matrix"),
        ({"general.type": 3}, "metadata key 'general.type' is an integer; expected a string"),
        ({"imatrix.datasets": "one.txt"}, "metadata key 'imatrix.datasets' is a string; expected an array of strings"),
        ({"imatrix.chunk_count": 1.5}, "metadata key 'imatrix.chunk_count' is a number; expected an integer"),
    ],
)
def test_other_files_and_wrong_keys_are_named(changes: dict, line: str, tmp_path) -> None:
    path = file_of(tmp_path, SUMS, COUNTS, **changes)
    with pytest.raises(FormatError, match=re.escape(f"{path}: {line}")):
        read_imatrix(path)


def test_a_model_is_no_importance_matrix(tmp_path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_model())
    with pytest.raises(FormatError, match="expected an importance matrix"):
        read_imatrix(path)


# --- the older form -----------------------------------------------------------------------------------------

TAIL = struct.pack("<ii", 12, 8) + b"wiki.txt"


@pytest.mark.parametrize("tail", [b"", TAIL])
def test_the_older_form(tail: bytes, tmp_path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(dat((NAME.encode(), 12, [6, 24, 0]), (b"output.weight", 10, [5]), tail=tail))
    found = read_imatrix(path)
    assert {name: mean.tolist() for name, mean in found.tensors.items()} == {NAME: [0.5, 2, 0], "output.weight": [0.5]}
    assert found.counts[NAME].tolist() == [12]
    assert (found.n_chunks, found.datasets) == ((12, ("wiki.txt",)) if tail else (0, ()))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "is empty; expected an importance matrix"),
        (b"ab", "the file ends inside the number of entries"),
        (b"A text, not numbers", "the number of entries is 1702109249; expected a number from 1 to 65536"),
        (dat(), "the number of entries is 0"),
        (dat((b"a", 1, [1.0]))[:-1], "the file ends inside the values of 'a'"),
        (dat((b"a", 0, [1.0])), "the number of calls of 'a' is 0; expected a number from 1"),
        (dat((b"a", -3, [1.0])), "the number of calls of 'a' is -3"),
        (dat((b"a", 1, [])), "the number of values of 'a' is 0"),
        (dat((b"a", 1, [1.0]), (b"a", 1, [1.0])), "entry 'a' appears twice"),
        (dat((b"\xff", 1, [1.0])), "the name of entry 0 is not UTF-8"),
        (dat((b"a" * 2000, 1, [1.0])), "the length of the name of entry 0 is 2000; expected a number from 0 to 1024"),
        (dat((b"a", 1, [1.0, np.nan])), "entry 'a' holds NaN or infinity"),
        (dat((b"a", 1, [1.0, -2.0])), "entry 'a' holds the negative number -2"),
        (dat((b"a", 1, [1.0]), tail=TAIL[:-1]), "the file ends inside the name of the text"),
        (struct.pack("<ii1sii", 1, 1, b"a", 1, 2**31 - 1), "the file ends inside the values of 'a'"),
    ],
)
def test_what_is_wrong_with_the_older_form_is_named(data: bytes, line: str, tmp_path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=re.escape(line)) as caught:
        read_imatrix(path)
    assert str(path) in str(caught.value)


# --- damage -------------------------------------------------------------------------------------------------


def _sound() -> list[bytes]:
    file = io.BytesIO()
    GGUFWriter(file, METADATA, [SUMS, COUNTS]).write()
    return [file.getvalue(), dat((NAME.encode(), 12, [6.0, 24.0]), tail=TAIL)]


@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory, data: st.DataObject) -> None:
    """Any bytes changed or cut off: numbers that can be used come out, or one clear error."""
    raw = bytearray(data.draw(st.sampled_from(_sound())))
    for at, byte in data.draw(st.dictionaries(st.integers(0, len(raw) - 1), st.integers(0, 255), max_size=6)).items():
        raw[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.imatrix"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        found = read_imatrix(path)
    except EdgellmError as problem:
        assert "\n" not in str(problem) and "damaged.imatrix" in str(problem)
    else:
        assert found.tensors
        for name, mean in found.tensors.items():
            assert np.isfinite(mean).all() and (mean >= 0).all()
            assert len(found.counts[name]) == (len(mean) if mean.ndim == 2 else 1)
