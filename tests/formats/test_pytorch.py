from __future__ import annotations

import io
import pickle
import struct
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, FileProblem, FormatError, UnsupportedError
from edgellm.formats.pytorch import read_pytorch, state_dict
from edgellm.formats.pytorch.pickle_reader import MAX_OPCODES
from edgellm.quants import FORMATS

from .test_fuzz import mutate, small_or_huge
from .trained import OTHERS, WEIGHTS, bytes_of, mapped, values

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
any_settings = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
FORMS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim else x,
    "part": lambda x: torch.cat([torch.zeros_like(x), x, x])[len(x) : 2 * len(x)] if x.ndim else x,
    "every second": lambda x: torch.stack([x, x], -1)[..., 0],
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=x.is_floating_point()),
}


@any_settings
@given(
    st.dictionaries(
        names,
        st.tuples(
            st.sampled_from([*WEIGHTS, *OTHERS]), st.lists(st.integers(0, 3), max_size=4), st.sampled_from([*FORMS])
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([2, 3, 4, 5]),
    st.sampled_from([None, "state_dict", "model"]),
)
def test_we_read_what_torch_writes(tmp_path, wanted, protocol, wrapped):
    built = {
        name: FORMS[form](values(tuple(shape), (WEIGHTS | OTHERS)[dtype]))
        for name, (dtype, shape, form) in wanted.items()
    }
    whole = (
        built if wrapped is None else {wrapped: OrderedDict(built), "step": 3, "loss": 0.5, "config": {"bias": None}}
    )
    torch.save(whole, tmp_path / "m.bin", pickle_protocol=protocol)
    found = read_pytorch(tmp_path / "m.bin")
    assert found.others == {name: dtype for name, (dtype, _, _) in wanted.items() if dtype in OTHERS}
    assert list(found.tensors) == [name for name, (dtype, _, _) in wanted.items() if dtype in WEIGHTS]
    for name, tensor in found.tensors.items():
        assert (tensor.name, tensor.shape) == (name, tuple(built[name].shape))
        assert tensor.format is FORMATS[wanted[name][0]]
        assert tensor.raw.tobytes() == bytes_of(built[name])
        assert not tensor.raw.flags.writeable
        np.testing.assert_array_equal(tensor.dequantize(), built[name].detach().float().numpy())


def test_a_module_s_state_dict_is_viewed_in_place(tmp_path):
    module = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 7, bias=False))
    module[2].weight = module[0].weight
    torch.save(module.state_dict(), tmp_path / "m.bin")
    found = read_pytorch(tmp_path / "m.bin")
    assert found.others == {"1.num_batches_tracked": "I64"}
    assert found.tensors.keys() == module.state_dict().keys() - found.others.keys()
    assert found.n_bytes == (tmp_path / "m.bin").stat().st_size
    assert all(mapped(tensor.raw) for tensor in found.tensors.values())
    tied, other = found.tensors["0.weight"], found.tensors["2.weight"]
    assert tied.address == other.address
    np.testing.assert_array_equal(other.dequantize(), module[0].weight.detach().numpy())


def test_rows_of_a_shared_storage_are_viewed_and_columns_copied(tmp_path):
    whole = values((6, 8), torch.float32)
    torch.save({"whole": whole, "rows": whole[2:4], "columns": whole[:, 1:3], "turned": whole.t()}, tmp_path / "m.bin")
    tensors = read_pytorch(tmp_path / "m.bin").tensors
    assert tensors["rows"].address == tensors["whole"].address + 2 * 8 * 4
    assert [mapped(tensors[name].raw) for name in ("whole", "rows", "columns", "turned")] == [True, True, False, False]
    np.testing.assert_array_equal(tensors["columns"].dequantize(), whole[:, 1:3].numpy())
    np.testing.assert_array_equal(tensors["turned"].dequantize(), whole.t().numpy())


def test_copies_are_bounded(tmp_path, monkeypatch):
    torch.save({"a": values((6, 8), torch.float32).t(), "b": values((6, 8), torch.float32).t()}, tmp_path / "m.bin")
    monkeypatch.setattr(state_dict, "MAX_COPIED_BYTES", 2 * 6 * 8 * 4 - 1)
    with pytest.raises(UnsupportedError, match=r"tensor 'b': it is not contiguous.*\.contiguous\(\)"):
        read_pytorch(tmp_path / "m.bin")


def test_an_expanded_tensor_is_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "m.bin")
    with pytest.raises(UnsupportedError, match=r"tensor 'a': it is expanded.*\.contiguous\(\)"):
        read_pytorch(tmp_path / "m.bin")


def test_a_training_checkpoint_gives_its_one_model(tmp_path):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "best_val_loss": torch.tensor(1.5)}
    torch.save(saved, tmp_path / "ckpt.pt")
    assert list(read_pytorch(tmp_path / "ckpt.pt").tensors) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([torch.ones(1)], "no mapping of names to tensors"),
        (torch.ones(1), "no mapping of names to tensors"),
        ({}, "holds no mapping of names to tensors"),
        ({"a": 1, "b": {"c": {"d": torch.ones(1)}}}, "holds no mapping of names to tensors"),
        ({"ema": {"a": torch.ones(1)}, "model": {"a": torch.ones(1)}}, "several mappings.*'ema', 'model'"),
        ({0: torch.ones(1)}, "names a tensor by a number"),
    ],
)
def test_files_that_are_no_state_dict(tmp_path, saved, message):
    torch.save(saved, tmp_path / "m.bin")
    with pytest.raises(FormatError, match=message):
        read_pytorch(tmp_path / "m.bin")


def test_the_form_before_1_6_is_refused_with_the_way_out(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match=r"before PyTorch 1\.6; save it again.*torch\.save"):
        read_pytorch(tmp_path / "m.bin")


# Files made by hand: a pickle written in opcodes, and the zip archive around it.


def value(what: object) -> bytes:
    """Opcodes that push a plain value."""
    return pickle.dumps(what, 2)[2:-1]


def storage(key: object = "0", kind: bytes = b"ctorch\nFloatStorage\n", size: object = 6) -> bytes:
    return b"(" + value("storage") + kind + value(key) + value("cpu") + value(size) + b"tQ"


def tensor(stored: bytes | None = None, offset: object = 0, shape: object = (2, 3), strides: object = (3, 1)) -> bytes:
    arguments = (storage() if stored is None else stored) + value(offset) + value(shape) + value(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89ccollections\nOrderedDict\n)RtR"


def table(*opcodes: bytes) -> bytes:
    """A pickle of {"w": the value that the opcodes push}."""
    return b"\x80\x02}" + value("w") + b"".join(opcodes) + b"s."


def archive(
    path: Path, content: bytes, storages: dict[str, bytes] | None = None, method: int = 0, **more: bytes
) -> Path:
    entries = {
        "data.pkl": content,
        **{f"data/{key}": raw for key, raw in (storages or {"0": bytes(24)}).items()},
        **more,
    }
    with zipfile.ZipFile(path, "w", method) as file:
        for name, raw in entries.items():
            file.writestr(f"archive/{name}", raw)
    return path


def test_a_file_made_by_hand_is_what_torch_reads_too(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    path = archive(tmp_path / "m.bin", table(tensor()), {"0": numbers.tobytes()}, version=b"3\n")
    np.testing.assert_array_equal(torch.load(path, weights_only=True)["w"].numpy(), numbers.reshape(2, 3))
    np.testing.assert_array_equal(read_pytorch(path).tensors["w"].dequantize(), numbers.reshape(2, 3))


def test_a_dimension_of_one_may_have_any_stride(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    strides = (2**62, 1, 2)
    path = archive(tmp_path / "m.bin", table(tensor(shape=(1, 2, 3), strides=strides)), {"0": numbers.tobytes()})
    expected = numbers.reshape(3, 2).T.reshape(1, 2, 3)
    np.testing.assert_array_equal(read_pytorch(path).tensors["w"].dequantize(), expected)


BIG = 2**62
HOSTILE = {
    "offset beyond": (table(tensor(offset=1)), "tensor 'w': it reaches to number 6 of a storage that has 6"),
    "negative offset": (table(tensor(offset=-1)), "from 0 on"),
    "offset is a float": (table(tensor(offset=0.5)), "are no numbers"),
    "offset is True": (table(tensor(offset=True)), "are no numbers"),
    "huge offset": (table(tensor(offset=BIG)), "reaches to number"),
    "stride beyond": (table(tensor(strides=(4, 1))), "it reaches to number 6"),
    "huge stride": (table(tensor(strides=(BIG, 1))), "reaches to number"),
    "negative stride": (table(tensor(strides=(-3, 1))), "from 0 on"),
    "stride is a text": (table(tensor(strides=("3", 1))), "from 0 on"),
    "strides missing": (table(tensor(strides=(1,))), "not as many"),
    "shape is a list": (table(tensor(shape=[2, 3])), "are no numbers"),
    "shape beyond": (table(tensor(shape=(3, 3))), "it reaches to number 8"),
    "shape overflows": (table(tensor(shape=(BIG, BIG, 4), strides=(0, 0, 0))), "more elements than any file"),
    "zero hides overflow": (table(tensor(shape=(0, BIG, BIG), strides=(1, 1, 1))), "more elements than any file"),
    "negative dim": (table(tensor(shape=(-2, 3))), "whole numbers from 0 on"),
    "dim is None": (table(tensor(shape=(None, 3))), "whole numbers from 0 on"),
    "many dims": (table(tensor(shape=(1,) * 17, strides=(1,) * 17)), "17 dimensions"),
    "storage missing": (table(tensor(storage("1"))), "its storage '1' is missing"),
    "storage path": (table(tensor(storage("../data.pkl"))), "is missing"),
    "storage too small": (table(tensor(storage(size=7))), "should have 28 bytes, but has 24"),
    "storage too large": (table(tensor(storage(size=5))), "should have 20 bytes, but has 24"),
    "storage of minus size": (table(tensor(storage(size=-6))), "something else than a storage"),
    "storage without class": (table(tensor(storage(kind=b"N"))), "something else than a storage"),
    "storage key number": (table(tensor(storage(key=0))), "something else than a storage"),
    "untyped without dtype": (table(tensor(storage(kind=b"ctorch.storage\nUntypedStorage\n"))), "rebuilds a tensor"),
    "no storage": (table(tensor(value(None))), "rebuilds a tensor from something else"),
    "persistent text": (table(value("storage") + b"Q"), "something else than a storage"),
    "too few arguments": (table(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "rebuilds a tensor from something else"),
    "v3 of nothing": (table(b"ctorch._utils\n_rebuild_tensor_v3\n)R"), "rebuilds a tensor from something else"),
    "parameter of nothing": (table(b"ctorch._utils\n_rebuild_parameter\n)R"), "rebuilds a parameter from"),
    "OrderedDict of something": (table(b"ccollections\nOrderedDict\n" + value(([],)) + b"R"), "OrderedDict from some"),
    "call of a text": (table(value("f") + b")R"), "calls something that is no function"),
    "call of a storage class": (table(b"ctorch\nFloatStorage\n)R"), "calls something that is no function"),
    "call without a tuple": (table(b"ccollections\nOrderedDict\n]R"), "calls something that is no function"),
    "build of a tensor": (table(tensor() + b"}b"), "gives attributes to something else than a dict"),
    "build of a function": (table(b"ccollections\nOrderedDict\n}b"), "gives attributes to something else than a dict"),
    "tuple as key": (b"\x80\x02})Ns.", "a key is a tuple"),
    "set in a list": (b"\x80\x02]NNs.", "adds named values to something else than a dict"),
    "append to a dict": (b"\x80\x02}Na.", "adds values to something else than a list"),
    "odd items": (b"\x80\x02}(Nu.", "a name has no value"),
    "no mark": (b"\x80\x02}u.", "since a mark, but there is none"),
    "open mark": (b"\x80\x02(}.", "expected one"),
    "nothing": (b"\x80\x02.", "with 0 values, expected one"),
    "two values": (b"\x80\x02}}.", "with 2 values, expected one"),
    "empty stack": (b"\x80\x02R.", "takes a value, but there is none"),
    "short tuple": (b"\x80\x02N\x86.", "takes 2 values, there are 1"),
    "forgotten": (b"\x80\x02h\x07.", "recalls value 7, which it never kept"),
    "keeping nothing": (b"\x80\x02q\x00.", "keeps a value, but there is none"),
    "long number": (b"\x80\x02\x8a\xff" + bytes(255) + b".", "a whole number of 255 bytes"),
    "long text": (b"\x80\x02X\xff\xff\xff\x7fa.", "cut off"),
    "bad text": (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
    "no end": (b"\x80\x02}", "cut off"),
    "empty": (b"", "cut off"),
    "name without end": (b"\x80\x02ctorch", "a name has no end"),
    "protocol 0": (b"\x80\x00}.", "protocol 0 is not 2 to 5"),
    "protocol 9": (b"\x80\x09}.", "protocol 9 is not 2 to 5"),
    "unknown opcode": (b"\x80\x02\xff.", "uses opcode 0xff"),
    "name from numbers": (b"\x80\x04NN\x93.", "a name is no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles(tmp_path, case):
    content, message = HOSTILE[case]
    path = archive(tmp_path / "m.bin", content)
    with pytest.raises(FileProblem, match=message) as caught:
        read_pytorch(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    "body",
    {
        "marks": b"(" * MAX_OPCODES,
        "dicts": b"}" * MAX_OPCODES,
        "nested tuples": b")" + b"\x85" * MAX_OPCODES,
        "nested lists": b"]" * (MAX_OPCODES // 2) + b"a" * (MAX_OPCODES // 2),
        "memo": b"}" + b"\x94" * MAX_OPCODES,
        "doubling tuples": b")" + b"q\x00h\x00\x86" * MAX_OPCODES,
        "a list in itself": b"]q\x00h\x00a" + b"h\x00a" * MAX_OPCODES,
    }.values(),
)
def test_bombs_of_opcodes_end_soon(tmp_path, body):
    path = archive(tmp_path / "m.bin", b"\x80\x02" + body)
    start = time.process_time()
    with pytest.raises(FormatError, match=f"more than {MAX_OPCODES} opcodes"):
        read_pytorch(path)
    assert time.process_time() - start < 20


def test_values_in_themselves_and_deeply_nested_ones_are_let_go(tmp_path):
    deep = b")" + b"\x85" * 200_000
    itself = b"}q\x07" + value("itself") + b"h\x07s"
    path = archive(tmp_path / "m.bin", table(deep))
    with pytest.raises(FormatError, match="holds no mapping"):
        read_pytorch(path)
    path = archive(tmp_path / "m.bin", b"\x80\x02" + itself + value("w") + tensor() + b"s.")
    assert read_pytorch(path).tensors["w"].shape == (2, 3)


def crime(marker: Path) -> dict[str, bytes]:
    """Pickles that each create the file `marker` when Python runs them."""
    command = value(f"touch {marker}")
    call = f"open({str(marker)!r}, 'w').close()"
    return {
        "GLOBAL REDUCE": b"\x80\x02cos\nsystem\n" + command + b"\x85R.",
        "GLOBAL eval": b"\x80\x02c__builtin__\neval\n" + value(call) + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + command + b"\x85R.",
        "STACK_GLOBAL of a path": b"\x80\x04\x8c\x07zipfile\x8c\x09os.system\x93" + command + b"\x85R.",
        "memoized": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93" + command + b"\x85R.",
        "INST": b"\x80\x02(" + command + b"ios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\n" + command + b"o.",
        "NEWOBJ": b"\x80\x02cfunctools\npartial\n(cos\nsystem\n" + command + b"t\x81)R.",
        "BUILD": b"\x80\x02cfunctools\npartial\ncos\nsystem\n\x85R(cos\nsystem\n" + command + b"\x85}Ntb)R.",
        "in a table": b"\x80\x02}" + value("w") + tensor() + b"s" + value("x")
        + b"cos\nsystem\n" + command + b"\x85Rs.",
        "as hooks": b"\x80\x02}" + value("w") + tensor()[:-len(b"ccollections\nOrderedDict\n)RtR")]
        + b"cos\nsystem\n" + command + b"\x85RtRs.",
    }  # fmt: skip


class Victim(pickle.Unpickler):
    """Python's own machine, which runs what a pickle says."""

    def persistent_load(self, persistent_id):
        untyped = torch.UntypedStorage(24)
        return torch.storage.TypedStorage(wrap_storage=untyped, dtype=torch.float32, _internal=True)


@pytest.mark.parametrize("case", crime(Path()))
def test_malicious_pickles_never_run(tmp_path, case):
    marker = tmp_path / "marker"
    content = crime(marker)[case]
    Victim(io.BytesIO(content)).load()
    assert marker.exists(), "the pickle would do no harm, so that this test would show nothing"
    marker.unlink()

    path = archive(tmp_path / "m.bin", content)
    with pytest.raises(FormatError, match=r"whose code it would run|no table of weights needs"):
        read_pytorch(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "torch.load", "torch._utils._rebuild_tensor", "torch.serialization.load",
     "collections.OrderedDict.__init__", "torch.FloatStorage.from_file", "numpy.core.multiarray._reconstruct",
     "functools.partial", "torch.hub.load", "wave.open"],
)  # fmt: skip
def test_a_name_outside_of_the_table_is_refused_by_name_and_not_imported(tmp_path, name, monkeypatch):
    module, _, last = name.rpartition(".")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    for content in (
        b"\x80\x02c" + f"{module}\n{last}\n".encode() + b".",
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, last)) + b"\x93.",
    ):
        path = archive(tmp_path / "m.bin", content)
        with pytest.raises(FormatError, match=f"it names '{name}', whose code it would run"):
            read_pytorch(path)
    assert "wave" not in sys.modules


# The zip archive.


def test_compressed_entries_are_refused(tmp_path):
    path = archive(tmp_path / "m.bin", table(tensor()), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsupportedError, match=r"zip entry 'archive/data.pkl': it is compressed"):
        read_pytorch(path)


def test_sizes_of_64_bits_are_read(tmp_path, monkeypatch):
    """zipfile writes them for large files; with its limit lowered, for a small one too."""
    numbers = np.arange(6, dtype=np.float32)
    plain = archive(tmp_path / "plain.bin", table(tensor()), {"0": numbers.tobytes()}).stat().st_size
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 20)
    path = archive(tmp_path / "m.bin", table(tensor()), {"0": numbers.tobytes()})
    assert path.stat().st_size > plain
    np.testing.assert_array_equal(read_pytorch(path).tensors["w"].dequantize(), numbers.reshape(2, 3))
    content = path.read_bytes()
    extra = content.rfind(b"\x01\x00", 0, content.rfind(b"archive/data/0") + 50)
    (tmp_path / "m.bin").write_bytes(content[:extra] + b"\x02" + content[extra + 1 :])
    with pytest.raises(FormatError, match="lacks the sizes of 64 bits"):
        read_pytorch(tmp_path / "m.bin")


def test_a_big_endian_file_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="byte order"):
        read_pytorch(archive(tmp_path / "m.bin", table(tensor()), byteorder=b"big"))
    assert read_pytorch(archive(tmp_path / "m.bin", table(tensor()), byteorder=b"little")).tensors["w"].shape == (2, 3)


def changed(path: Path, field: int, layout: str, number: int, magic: bytes = b"PK\x01\x02") -> Path:
    """The archive with a number overwritten, `field` bytes behind the first `magic`."""
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, content.find(magic) + field, number)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((8, "<H", 1), "is encrypted"),
        ((20, "<I", 3), "claims 3 stored bytes, but"),
        ((42, "<I", 2**31), "local header is cut off or lies outside"),
        ((42, "<I", 1), "local header starts with"),
        ((28, "<H", 60000), "reaches beyond the directory"),
        ((46, "<B", 0xFF), "not UTF-8"),
        ((46, "<B", ord("x")), "has another name"),
        ((30, "<B", ord("x"), b"PK\x03\x04"), "has another name"),
        ((28, "<H", 60000, b"PK\x03\x04"), "archive's data ends at"),
        ((0, "<I", 0), "directory starts with"),
        ((10, "<H", 60000, b"PK\x05\x06"), "directory is cut off"),
        ((12, "<I", 2**31, b"PK\x05\x06"), "zip directory claims bytes"),
        ((16, "<I", 2**31, b"PK\x05\x06"), "zip directory claims bytes"),
        ((20, "<H", 1, b"PK\x05\x06"), "several parts, or bytes follow it"),
        ((4, "<H", 1, b"PK\x05\x06"), "several parts, or bytes follow it"),
        ((0, "<I", 0, b"PK\x05\x06"), "has no end: the file is cut off"),
    ],
)
def test_hostile_archives(tmp_path, where, message):
    path = changed(archive(tmp_path / "m.bin", table(tensor())), *where)
    with pytest.raises(FileProblem, match=message):
        read_pytorch(path)


def test_an_entry_that_appears_twice(tmp_path):
    content = archive(tmp_path / "m.bin", table(tensor()), {"0": bytes(24), "1": b""}).read_bytes()
    (tmp_path / "m.bin").write_bytes(content.replace(b"archive/data/1", b"archive/data/0"))
    with pytest.raises(FormatError, match="'archive/data/0' appears twice"):
        read_pytorch(tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a PyTorch file"),
        (b"hello", "not a PyTorch file: it starts with b'hell'"),
        (b"PK\x03\x04", "has no end: the file is cut off"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_no_pytorch_files(tmp_path, content, message):
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(FileProblem, match=message):
        read_pytorch(tmp_path / "m.bin")


@pytest.mark.parametrize("names", [[], ["a/data.pkl", "b/data.pkl"], ["data.pkl"]])
def test_an_archive_without_its_one_pickle(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as file:
        for name in ["other", *names]:
            file.writestr(name, b"")
    with pytest.raises(FormatError, match=r"entries data\.pkl; a PyTorch file has one"):
        read_pytorch(tmp_path / "m.bin")


def test_a_huge_pickle_is_not_even_read(tmp_path, monkeypatch):
    monkeypatch.setattr(state_dict, "MAX_PICKLE", 50)
    with pytest.raises(FormatError, match="where edgellm reads at most 50"):
        read_pytorch(archive(tmp_path / "m.bin", table(tensor())))


def small_file(protocol: int) -> bytes:
    file = io.BytesIO()
    whole = values((6, 8), torch.float32)
    built = {f"t.{name}": values((2, 3), dtype) for name, dtype in (WEIGHTS | OTHERS).items()}
    torch.save(built | {"rows": whole[1:3], "turned": whole.t()}, file, pickle_protocol=protocol)
    return file.getvalue()


SMALL = {protocol: small_file(protocol) for protocol in (2, 4)}
# The pickle stands at the start, the archive's directory at the end.
anywhere = st.integers(0, 2500) | st.integers(-1800, -1).map(lambda at: len(SMALL[2]) + at)
mutations = st.one_of(
    st.tuples(st.just("flip"), anywhere, st.integers(1, 255)),
    st.tuples(st.just("number"), anywhere, small_or_huge),
    st.tuples(st.just("insert"), anywhere, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("delete"), anywhere, st.integers(1, 64)),
    st.tuples(st.just("cut"), anywhere, st.none()),
    st.tuples(st.just("repeat"), anywhere, st.integers(1, 200)),
)


def open_and_use(path: Path) -> None:
    start = time.process_time()
    try:
        for found in read_pytorch(path).tensors.values():
            assert found.dequantize().shape == found.shape
    except EdgellmError as error:
        assert "\n" not in str(error)
    assert time.process_time() - start < 2


@settings(any_settings, max_examples=400)
@given(st.sampled_from([2, 4]), st.lists(mutations, min_size=1, max_size=3))
def test_mutated_files(tmp_path, protocol, changes):
    content = SMALL[protocol]
    for change in changes:
        content = mutate(content, *change)
    (tmp_path / "m.bin").write_bytes(content)
    open_and_use(tmp_path / "m.bin")


@settings(any_settings, max_examples=400)
@given(st.lists(mutations, min_size=1, max_size=3))
def test_mutated_pickles_in_whole_archives(tmp_path, changes):
    content = table(tensor())
    for kind, at, how in changes:
        content = mutate(content, kind, at % (len(content) + 1), how)
    open_and_use(archive(tmp_path / "m.bin", content))


@settings(any_settings, max_examples=300)
@given(st.lists(st.sampled_from([tensor(), storage(), *(bytes([i]) for i in b"()]}tasueQRbN."), b"q\x00", b"h\x00",
                                 value("w"), value(3), b"\x85", b"\x86", b"\x87", b"\x94"]), max_size=30))  # fmt: skip
def test_random_programs(tmp_path, opcodes):
    open_and_use(archive(tmp_path / "m.bin", b"\x80\x02" + b"".join(opcodes) + b"."))
