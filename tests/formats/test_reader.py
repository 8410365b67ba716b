"""Reading GGUF: what a good file gives, and the one clear line that every kind of bad file gives."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgellmError, FileProblem, FormatError, UnsupportedError
from edgellm.formats.gguf import GGUFFile, StringArray, get_value, spec
from edgellm.quants import FORMATS

from .build import array, entry, gguf_bytes, info, raw_file, small_model, string, tensor

U32, STRING, ARRAY = 4, 8, 9
HUGE = 2**64 - 1


@pytest.fixture
def write(tmp_path):
    def write(content: bytes, name: str = "model.gguf") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.mark.parametrize("version", [2, 3])
def test_a_good_file(write, version):
    path = write(small_model(version))
    with GGUFFile.open(path) as file:
        assert (file.path, file.version, file.n_bytes) == (path, version, path.stat().st_size)
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["llama.block_count"] == 1
        assert file.metadata["tokenizer.ggml.add_bos_token"] is True
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, StringArray) and len(tokens) == 300 and tokens[7] == "▁token7"
        assert file.metadata["tokenizer.ggml.merges"][2:] == ["", "e" * 300]
        scores = file.metadata["tokenizer.ggml.scores"]
        assert scores.dtype == np.float32 and scores[-1] == 0 and not scores.flags.writeable
        embeddings = file.tensors["token_embd.weight"]
        assert embeddings.shape == (300, 64) and embeddings.format is FORMATS["Q8_0"]
        assert embeddings.raw.shape == (300, 68) and embeddings.n_bytes == 300 * 68
        assert file.tensors["blk.0.attn_norm.weight"].raw.shape == (256,)
        assert file.tensors["blk.0.experts.weight"].raw.shape == (6, 64)
        assert file.tensors["blk.0.experts.weight"].dequantize().shape == (2, 3, 32)
        expected = tensor("", (300, 64), "Q8_0")[3]
        np.testing.assert_array_equal(embeddings.raw, expected)


def test_tensors_are_views_of_the_mapped_file(write):
    with GGUFFile.open(write(small_model())) as file:
        tensors = file.tensors.values()
        assert not any(t.raw.flags.writeable or t.raw.flags.owndata for t in tensors)
        assert all(t.address % 32 == 0 and t.address == t.raw.ctypes.data for t in tensors)


def test_metadata_and_tensors_cannot_be_changed(write):
    with GGUFFile.open(write(small_model())) as file:
        with pytest.raises(TypeError):
            file.metadata["a"] = 1
        with pytest.raises(TypeError):
            file.tensors["a"] = None


def test_arrays_outlive_the_file(write):
    with GGUFFile.open(write(small_model())) as file:
        norm = file.tensors["blk.0.attn_norm.weight"]
        tokens = file.metadata["tokenizer.ggml.tokens"]
    assert not file.tensors and not file.metadata
    file.close()
    assert np.isfinite(norm.dequantize()).all() and tokens[299] == "▁token299"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_closing_lets_go_of_the_mapping(write):
    path = write(small_model())
    file = GGUFFile.open(path)
    assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    file.close()
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_file_of_vocabulary_only(write):
    with GGUFFile.open(write(gguf_bytes({"tokenizer.ggml.tokens": ["a"]}))) as file:
        assert len(file.tensors) == 0 and list(file.metadata["tokenizer.ggml.tokens"]) == ["a"]


def test_every_value_type(write):
    values = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    entries = [entry(f"n{kind}", kind, struct.pack("<" + letter, 77)) for kind, letter in values.items()]
    for kind, letter in values.items():
        entries.append(entry(f"a{kind}", ARRAY, array(kind, 2, struct.pack("<2" + letter, 5, 6))))
    entries += [entry("no", 7, b"\0"), entry("bools", ARRAY, array(7, 3, b"\1\0\1"))]
    entries += [entry("text", STRING, string("ü"))]
    with GGUFFile.open(write(raw_file(entries))) as file:
        for kind in values:
            assert file.metadata[f"n{kind}"] == 77
            assert type(file.metadata[f"n{kind}"]) is (float if kind in (6, 12) else int)
            assert file.metadata[f"a{kind}"].dtype == spec.NUMBERS[kind]
            assert file.metadata[f"a{kind}"].tolist() == [5, 6]
        assert file.metadata["no"] is False
        assert file.metadata["bools"].tolist() == [True, False, True]
        assert file.metadata["text"] == "ü"


def test_typed_access(write):
    with GGUFFile.open(write(small_model())) as file:
        assert file.get("llama.block_count", int) == 1
        assert file.get("llama.block_count", float) == 1.0
        assert file.get("llama.rope.freq_base", float) == 10000.0
        assert file.get("llama.context_length", int, 512) == 512
        assert len(file.get("tokenizer.ggml.scores", np.ndarray)) == 300
        assert len(file.get("tokenizer.ggml.tokens", StringArray)) == 300
        with pytest.raises(FormatError, match=r"'llama\.block_count' is an integer; expected a string"):
            file.get("llama.block_count", str)
        with pytest.raises(FormatError, match="add_bos_token' is a bool; expected an integer"):
            file.get("tokenizer.ggml.add_bos_token", int)
        with pytest.raises(FormatError, match=r"model\.gguf: .*context_length' is missing; expected an int"):
            file.get("llama.context_length", int)
    assert get_value({"a": "b"}, "a", str) == "b"


def test_other_alignment(write):
    content = gguf_bytes({"general.alignment": 256}, [tensor("a", (3,)), tensor("b", (5,))])
    with GGUFFile.open(write(content)) as file:
        assert (file.tensors["b"].address - file.tensors["a"].address) == 256
        np.testing.assert_array_equal(file.tensors["b"].dequantize(), tensor("b", (5,))[3].view(np.float32))


def test_unusual_but_allowed(write):
    """A gap between tensors, tensors in any order, a number without dimensions."""
    infos = [info("b", (8,), 0, 64), info("a", (8,), 0, 0), info("scalar", (), 0, 128)]
    data = np.arange(33, dtype="<f4").tobytes()
    with GGUFFile.open(write(raw_file([], infos, data))) as file:
        assert list(file.tensors) == ["b", "a", "scalar"]
        assert file.tensors["b"].dequantize().tolist() == list(range(16, 24))
        assert file.tensors["scalar"].dequantize() == 32 and file.tensors["scalar"].shape == ()


F32_8 = info("a", (8,))
HOSTILE = {
    "empty": (b"", FormatError, "is empty"),
    "one byte": (b"G", FormatError, "not a GGUF file"),
    "magic only": (b"GGUF", FormatError, "ends inside its version"),
    "other magic": (b"PK\3\4" + bytes(100), FormatError, r"starts with b'PK\\x03\\x04', expected b'GGUF'"),
    "text": (b"hello\n", FormatError, "not a GGUF file"),
    "version 0": (raw_file(version=0), UnsupportedError, "version 0 is not supported"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0), UnsupportedError, "version 1 is not supported"),
    "version 4": (raw_file(version=4), UnsupportedError, "version 4 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedError, "big-endian"),
    "no counts": (b"GGUF" + struct.pack("<I", 3) + bytes(15), FormatError, "ends inside its counts"),
    "huge tensor count": (raw_file(n_tensors=HUGE), FormatError, "claims 18446744073709551615 tensors"),
    "huge metadata count": (
        raw_file(n_metadata=HUGE),
        FormatError,
        "claims 18446744073709551615 metadata keys",
    ),
    "too many tensors": (raw_file(n_tensors=70000, data=bytes(2 << 20)), FormatError, "at most 65536"),
    "too many keys": (raw_file(n_metadata=70000, data=bytes(2 << 20)), FormatError, "at most 65536"),
    "one key short": (
        raw_file([entry("a", U32, b"\0" * 4), b" " * 64]),
        FormatError,
        "a metadata key claims",
    ),
    "cut in key": (raw_file([string("a" * 20)[:-1]]), FormatError, "ends inside a metadata key"),
    "huge key": (
        raw_file([struct.pack("<Q", HUGE) + bytes(99)]),
        FormatError,
        "claims 18446744073709551615 bytes",
    ),
    "long key": (raw_file([entry("k" * 65536, U32, b"\0" * 4)]), FormatError, "at most 65535"),
    "key not UTF-8": (raw_file([entry(b"\xff\xfe", U32, b"\0" * 4)]), FormatError, "key is not UTF-8"),
    "key twice": (
        raw_file([entry("a", 0, b"\0"), entry("a", 0, b"\0")]),
        FormatError,
        "key 'a' appears twice",
    ),
    "unknown value type": (
        raw_file([entry("a", 13, bytes(8))]),
        FormatError,
        "'a': value type 13 does not exist",
    ),
    "cut value": (
        raw_file([entry("abcd", 10, bytes(7))]),
        FormatError,
        "'abcd': the file ends inside its value",
    ),
    "bool of 2": (raw_file([entry("a", 7, b"\2")]), FormatError, "'a': a bool of 2"),
    "array of bool of 2": (
        raw_file([entry("a", ARRAY, array(7, 2, b"\0\2"))]),
        FormatError,
        "array of bools",
    ),
    "huge string": (
        raw_file([entry("a", STRING, struct.pack("<Q", HUGE))]),
        FormatError,
        "'a': its text claims",
    ),
    "string beyond": (
        raw_file([entry("a", STRING, struct.pack("<Q", 99))]),
        FormatError,
        "ends inside its text",
    ),
    "string not UTF-8": (
        raw_file([entry("a", STRING, string(b"\xc3"))]),
        FormatError,
        "'a': its text is not UTF-8",
    ),
    "nested array": (
        raw_file([entry("a", ARRAY, array(9, 1, array(4, 0, b"")))]),
        UnsupportedError,
        "array of arrays",
    ),
    "deeply nested": (
        raw_file([entry("a", ARRAY, array(9, 1, b"") * 5000)]),
        UnsupportedError,
        "array of arrays",
    ),
    "unknown item type": (raw_file([entry("a", ARRAY, array(99, 1, bytes(9)))]), FormatError, "item type 99"),
    "huge array": (raw_file([entry("a", ARRAY, array(U32, HUGE, bytes(9)))]), FormatError, "array of 184467"),
    "overflowing array": (
        raw_file([entry("a", ARRAY, array(U32, 2**62, bytes(9)))]),
        FormatError,
        "ends inside",
    ),
    "huge string array": (
        raw_file([entry("a", ARRAY, array(8, HUGE, bytes(9)))]),
        FormatError,
        "strings, more than",
    ),
    "string array cut": (
        raw_file([entry("a", ARRAY, array(8, 2, string("x" * 9)))]),
        FormatError,
        "string array",
    ),
    "alignment 0": (
        raw_file([entry("general.alignment", U32, bytes(4))]),
        FormatError,
        "general.alignment is '0'",
    ),
    "alignment 33": (raw_file([entry("general.alignment", U32, b"\x21\0\0\0")]), FormatError, "power of two"),
    "alignment text": (
        raw_file([entry("general.alignment", STRING, string("32"))]),
        FormatError,
        "power of two",
    ),
    "alignment huge": (
        raw_file([entry("general.alignment", 10, struct.pack("<Q", 2**63))], [F32_8], bytes(32)),
        FormatError,
        "cut off: tensor 'a'",
    ),
    "cut in tensor entry": (raw_file([], [F32_8[:-1]]), FormatError, "ends inside a tensor entry"),
    "tensor name long": (raw_file([], [info("n" * 65, (8,))], bytes(32)), FormatError, "at most 64"),
    "tensor name not UTF-8": (
        raw_file([], [info(b"\xff", (8,))], bytes(32)),
        FormatError,
        "name is not UTF-8",
    ),
    "tensor twice": (raw_file([], [F32_8, F32_8], bytes(64)), FormatError, "tensor 'a' appears twice"),
    "5 dimensions": (raw_file([], [info("a", (1,) * 5)], bytes(32)), FormatError, "'a' has 5 dimensions"),
    "huge dimensions": (
        raw_file([], [string("a") + struct.pack("<I", 2**32 - 1) + bytes(64)]),
        FormatError,
        "4294967295",
    ),
    "dimension 0": (raw_file([], [info("a", (8, 0))], bytes(32)), FormatError, r"'a': its shape is \(0, 8\)"),
    "overflowing dims": (
        raw_file([], [info("a", (2**32, 2**32))], bytes(32)),
        FormatError,
        "cut off: tensor 'a'",
    ),
    "overflowing to small": (
        raw_file([], [info("a", (2**63, 2, 2**63, 8))], bytes(32)),
        FormatError,
        "cut off",
    ),
    "unknown type": (
        raw_file([], [info("a", (8,), 999)], bytes(32)),
        FormatError,
        "'a': tensor type number 999",
    ),
    "type we lack": (
        raw_file([], [info("a", (256,), 17)], bytes(99)),
        UnsupportedError,
        "'a': tensor type IQ2_XS",
    ),
    "half a block": (
        raw_file([], [info("a", (48,), 2)], bytes(99)),
        FormatError,
        "48 weights, not a multiple of 32",
    ),
    "misaligned": (
        raw_file([], [info("a", (8,), 0, 4)], bytes(99)),
        FormatError,
        "offset 4 is not a multiple",
    ),
    "overlap": (
        raw_file([], [info("a", (16,)), info("b", (8,), 0, 32)], bytes(99)),
        FormatError,
        "'a' and 'b' overlap",
    ),
    "same place": (raw_file([], [F32_8, info("b", (8,))], bytes(99)), FormatError, "'a' and 'b' overlap"),
    "data cut": (
        raw_file([], [F32_8], bytes(31)),
        FormatError,
        "the file is cut off: tensor 'a' ends at byte 96",
    ),
    "no data": (raw_file([], [F32_8]), FormatError, "cut off"),
    "offset beyond": (raw_file([], [info("a", (8,), 0, 2**63)], bytes(32)), FormatError, "cut off"),
    "part without its name": (
        raw_file([entry("split.count", 2, b"\2\0"), entry("split.no", 2, b"\0\0")]),
        FormatError,
        "part 1 of 2, so its name should end in -00001-of-00002.gguf",
    ),
    "split count of text": (
        raw_file([entry("split.count", STRING, string("2"))]),
        FormatError,
        "expected an integer",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_files_end_in_one_clear_line(write, case):
    content, error, message = HOSTILE[case]
    path = write(content)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(error, match=message) as caught:
        GGUFFile.open(path)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.5 and peak < 4 << 20
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line and len(line) < 400


def test_names_from_the_file_cannot_break_the_line(write):
    path = write(raw_file([entry("a\n\x1b[31m" + "b" * 9999, 13, b"")]))
    with pytest.raises(FormatError) as caught:
        GGUFFile.open(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300 + len(str(path))


def test_every_cut_of_a_good_file_is_noticed(write):
    content = small_model()
    for length in [*range(1, 400), *range(400, len(content), 97), len(content) - 32]:
        with pytest.raises(FormatError):
            GGUFFile.open(write(content[:length]))


def test_random_bytes(write):
    random = np.random.default_rng(0)
    for _ in range(50):
        with pytest.raises(FormatError, match="not a GGUF file"):
            GGUFFile.open(write(random.bytes(1000)))
        with pytest.raises(EdgellmError):
            GGUFFile.open(write(b"GGUF\3\0\0\0" + random.bytes(1000)))


def test_places_that_are_no_files(tmp_path):
    with pytest.raises(FileProblem, match=r"nothing\.gguf does not exist"):
        GGUFFile.open(tmp_path / "nothing.gguf")
    with pytest.raises(FileProblem, match="is not a file but a folder"):
        GGUFFile.open(str(tmp_path))
    with pytest.raises(FileProblem, match="cannot be read"):
        GGUFFile.open(tmp_path / ("x" * 5000))
    with pytest.raises(FileProblem, match="cannot be read"):
        GGUFFile.open("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileProblem, match="is not a file"):
        GGUFFile.open(tmp_path / "pipe")


@pytest.mark.parametrize(
    "start",
    [
        raw_file(n_metadata=65536),
        raw_file(n_tensors=65536),
        raw_file([entry("a", ARRAY, array(STRING, spec.MAX_STRINGS, b""))]),
        raw_file([entry("a", ARRAY, array(STRING, spec.MAX_STRINGS + 1, b""))]),
        raw_file([entry("a", ARRAY, array(U32, 2**30, b""))]),
        raw_file([entry("a", STRING, struct.pack("<Q", 2**30))]),
    ],
    ids=["keys", "tensors", "strings", "too many strings", "numbers", "text"],
)
def test_a_sparse_file_of_terabytes_is_no_trap(tmp_path, start):
    """Zeros cost nothing on disk, so any count can be "held by the file"."""
    path = tmp_path / "huge.gguf"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(1 << 40)
    before = time.process_time()
    with contextlib.suppress(EdgellmError):
        GGUFFile.open(path).close()
    assert time.process_time() - before < 3  # 0.3 s on an idle machine for two million empty strings


def split_model(folder: Path, n_parts: int = 3, **changes) -> list[Path]:
    """A model in parts, one tensor each; `changes` are metadata of the last part."""
    paths = []
    for i in range(n_parts):
        metadata = {"split.no": np.uint16(i), "split.count": np.uint16(n_parts)}
        metadata["split.tensors.count"] = np.int32(n_parts)
        if i == 0:
            metadata["general.architecture"] = "llama"
        if i == n_parts - 1:
            metadata |= changes
        paths.append(folder / f"model-{i + 1:05d}-of-{n_parts:05d}.gguf")
        paths[-1].write_bytes(gguf_bytes(metadata, [tensor(f"blk.{i}.weight", (4, 32), "Q4_1", seed=i)]))
    return paths


def test_opening_the_first_part_opens_all(tmp_path):
    paths = split_model(tmp_path)
    with GGUFFile.open(paths[0]) as file:
        assert list(file.tensors) == ["blk.0.weight", "blk.1.weight", "blk.2.weight"]
        assert file.metadata["general.architecture"] == "llama"
        assert file.n_bytes == sum(path.stat().st_size for path in paths)
        np.testing.assert_array_equal(file.tensors["blk.2.weight"].raw, tensor("", (4, 32), "Q4_1", seed=2)[3])


def test_opening_another_part_names_the_first(tmp_path):
    paths = split_model(tmp_path)
    with pytest.raises(FileProblem, match=r"is part 2 of 3; open the first, .*model-00001-of-00003\.gguf"):
        GGUFFile.open(paths[1])


def test_a_single_part_is_a_whole_file(tmp_path):
    (path,) = split_model(tmp_path, 1)
    with GGUFFile.open(path.rename(tmp_path / "renamed.gguf")) as file:
        assert list(file.tensors) == ["blk.0.weight"]


def test_a_part_is_missing(tmp_path):
    paths = split_model(tmp_path)
    paths[2].unlink()
    with pytest.raises(FileProblem, match=r"is part 1 of 3, and model-00003-of-00003\.gguf is not beside it"):
        GGUFFile.open(paths[0])
    paths[1].unlink()
    with pytest.raises(FileProblem, match=r"model-00002-of-00003\.gguf and 1 more is not beside it"):
        GGUFFile.open(paths[0])


def test_a_part_is_cut_off(tmp_path):
    paths = split_model(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    with pytest.raises(FormatError, match=r"00002-of-00003.*cut off"):
        GGUFFile.open(paths[0])


def test_a_part_of_something_else(tmp_path):
    paths = split_model(tmp_path, **{"split.no": np.uint16(1)})
    with pytest.raises(FormatError, match=r"00003-of-00003.* it is part 3 of 3, .* says that it is part 2 of 3"):
        GGUFFile.open(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())  # a part that is there twice, under two names
    with pytest.raises(FormatError, match=r"00003-of-00003.* it is part 3 of 3, .* says that it is part 2 of 3"):
        GGUFFile.open(paths[0])
    paths[2].write_bytes(small_model())
    with pytest.raises(FormatError, match=r"00003-of-00003.* says that it is a file of its own; fetch"):
        GGUFFile.open(paths[0])


def test_a_tensor_in_two_parts(tmp_path):
    paths = split_model(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes().replace(b"blk.1.weight", b"blk.0.weight"))
    with pytest.raises(FormatError, match=r"00002-of-00003.*'blk.0.weight' is also in another part"):
        GGUFFile.open(paths[0])


def test_a_tensor_is_missing(tmp_path):
    paths = split_model(tmp_path)
    three, four = (b"split.tensors.count" + struct.pack("<Ii", 5, count) for count in (3, 4))
    paths[0].write_bytes(paths[0].read_bytes().replace(three, four))
    with pytest.raises(FormatError, match="all parts hold 3 tensors; expected 4"):
        GGUFFile.open(paths[0])
