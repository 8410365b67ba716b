"""Kernels that ship with the package: used where they fit to the bit, and otherwise as good as absent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels import prebuilt, reference
from edgellm.kernels import store as store_module
from edgellm.kernels.isa import ALL, AVX512, GENERIC, available, host
from edgellm.kernels.registry import find
from edgellm.kernels.sources import source_hash
from edgellm.kernels.store import KernelStore
from edgellm.quants import FORMATS

from .compiled import Compiled
from .test_store import KERNEL, python, two_plus_three
from .weights import random_weights

FITTING = [isa for isa in available() if isa.portable and not isa.portable.lacks(host()[1])]
pytestmark = pytest.mark.skipif(not FITTING, reason="no kernels can ship for this CPU")
ISA = (FITTING or [GENERIC])[0]
SOURCES = source_hash()
LINEAR = find("linear_decode", FORMATS["Q4_1"])
BOTH = [KERNEL, LINEAR]


@pytest.fixture(scope="module")
def objects() -> dict[str, bytes]:
    """Two kernels, compiled for the family of this CPU."""
    from edgellm.kernels.compiler import compile_kernel

    return {kernel.name: compile_kernel(kernel, ISA.for_family()) for kernel in BOTH}


@pytest.fixture
def shipped(objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of these two, in the place where the package's own would be."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "package")
    monkeypatch.delenv("EDGELLM_PREBUILT", raising=False)
    return prebuilt.write(prebuilt.FOLDER, ISA, SOURCES, objects)


def load(folder: Path) -> list[str]:
    """Load a kernel from a store in `folder`, see that it works, and return what had to be compiled."""
    compiled: list[str] = []
    store = KernelStore(ISA, folder)
    store.load([KERNEL], lambda done, total, name: compiled.append(name))
    assert two_plus_three(store) == 5
    return compiled


def found() -> set[str]:
    """The names of what ships and can be trusted."""
    return {kernel.name for kernel in prebuilt.read(ISA, SOURCES, [*BOTH, find("rope")])}


def index_of(file: Path) -> dict:
    return json.loads(file.read_bytes().split(b"\n")[1])


def rewrite(file: Path, index: object) -> None:
    magic, _, rest = file.read_bytes().split(b"\n", 2)
    file.write_bytes(b"\n".join([magic, index if isinstance(index, bytes) else json.dumps(index).encode(), rest]))


LOAD = """
import sys
from pathlib import Path
from edgellm.kernels import prebuilt
from edgellm.kernels.isa import ALL
from edgellm.kernels.registry import find
from edgellm.kernels.store import KernelStore
{where}
(isa,) = (isa for isa in ALL if isa.name == {isa!r})
KernelStore(isa).load([find("add")])
print("numba" in sys.modules)
"""


def test_a_first_start_compiles_nothing(shipped: Path, tmp_path: Path) -> None:
    code = LOAD.format(where=f"prebuilt.FOLDER = Path({str(shipped.parent)!r})", isa=ISA.name)
    assert python(code, tmp_path / "home").communicate(timeout=60)[0] == "False\n"
    assert not (tmp_path / "home").exists()


def test_what_does_not_ship_is_compiled(shipped: Path, tmp_path: Path) -> None:
    compiled: list[str] = []
    store = KernelStore(ISA, tmp_path / "store")
    store.load([KERNEL, find("select_rows"), LINEAR], lambda done, total, name: compiled.append(name))
    assert compiled == ["select_rows", ""]
    assert two_plus_three(store) == 5


def test_what_was_compiled_here_comes_first(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once compiled for this very CPU, always used: no later start looks at what ships."""
    monkeypatch.setenv("EDGELLM_PREBUILT", "0")
    assert load(tmp_path / "store") == ["add", ""]
    monkeypatch.delenv("EDGELLM_PREBUILT")
    monkeypatch.setattr(prebuilt, "read", lambda *_: pytest.fail("it was looked at"))
    assert load(tmp_path / "store") == []


def test_it_has_the_bits_of_one_compiled_here(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    weights = random_weights(FORMATS["Q4_1"], 40, 768, rng)
    x = reference.quantize(rng.standard_normal((1, 768), np.float32))
    results = []
    for folder, setting in (("a", "1"), ("b", "0")):
        monkeypatch.setenv("EDGELLM_PREBUILT", setting)
        kernels = Compiled(ISA)
        kernels.store = KernelStore(ISA, tmp_path / folder)
        results.append(kernels.linear(weights, FORMATS["Q4_1"], x, "linear_decode"))
        assert len(list((tmp_path / folder).rglob("*.o"))) == (setting == "0")
    assert results[0].tobytes() == results[1].tobytes()
    assert np.abs(results[0]).max() > 0


def test_a_damaged_object_is_compiled_instead(shipped: Path, tmp_path: Path) -> None:
    content = bytearray(shipped.read_bytes())
    start, n_bytes, _ = index_of(shipped)["objects"]["add"]
    at = content.index(b"\n", content.index(b"\n") + 1) + 1 + start
    content[at + n_bytes // 2] ^= 1
    shipped.write_bytes(content)
    assert found() == {LINEAR.name}
    assert load(tmp_path / "store") == ["add", ""]


def test_a_changed_source_makes_all_of_them_stale(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b" " * (self.name == "elementwise.py"))
    assert load(tmp_path / "store") == ["add", ""]
    assert prebuilt.describe(ISA) == "not used: made from other sources than these"


def test_a_cpu_that_lacks_something(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ISA.portable is not None
    has = dict.fromkeys(ISA.portable.needs, True)
    monkeypatch.setattr(prebuilt, "host", lambda: ("some-cpu", has))
    assert found() == {"add", LINEAR.name}
    for name in ISA.portable.needs:
        for lacking in ({**has, name: False}, {other: True for other in has if other != name}):
            monkeypatch.setattr(prebuilt, "host", lambda features=lacking: ("some-cpu", features))
            assert found() == set()
            assert prebuilt.describe(ISA) == f"not used: this CPU lacks {name}"


def test_another_platform(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, other in (
        (prebuilt.platform, "machine", lambda: "aarch64"),
        (prebuilt.sys, "platform", "win32"),
        (prebuilt.sys, "maxsize", 2**31 - 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, other)
            assert found() == set()
            assert prebuilt.describe(ISA) == "not used: made for another machine"
    assert found() == {"add", LINEAR.name}


def test_the_file_of_another_instruction_set(
    shipped: Path, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = next(isa for isa in ALL if isa.portable and isa is not ISA)
    prebuilt.write(shipped.parent, other, SOURCES, objects).replace(shipped)
    assert found() == set()


def test_whatever_is_cut_off_or_flipped_only_the_truth_is_found(shipped: Path, objects: dict[str, bytes]) -> None:
    content = shipped.read_bytes()
    n_header = len(content) - sum(map(len, objects.values()))
    cuts = [content[:n] for n in (*range(n_header), *range(n_header, len(content), 997))]
    flips = [
        content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        for at in (*range(n_header), *range(n_header, len(content), 997))
    ]
    for damaged in (*cuts, *flips, np.random.default_rng(1).bytes(5000)):
        shipped.write_bytes(damaged)
        for kernel, code in prebuilt.read(ISA, SOURCES, BOTH).items():
            assert code == objects[kernel.name]
        assert prebuilt.describe(ISA)
    for cut in cuts:
        shipped.write_bytes(cut)
        assert found() < {"add", LINEAR.name}


@pytest.mark.parametrize(
    "index",
    [b"", b"{", b"null", b"[]", b"7", b'{"made": 1}', b"[" * 100_000, b"9" * 100_000, b"\xff\xfe", b'"\\ud800"'],
    ids=["empty", "open", "null", "list", "number", "no objects", "deep", "long number", "no text", "half a pair"],
)
def test_an_index_that_is_nonsense(shipped: Path, tmp_path: Path, index: bytes) -> None:
    rewrite(shipped, index)
    assert prebuilt.describe(ISA) == "not used: the file is damaged"
    assert load(tmp_path / "store") == ["add", ""]


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: None,
        lambda entry: "add",
        lambda entry: {},
        lambda entry: entry[:2],
        lambda entry: [*entry, 1],
        lambda entry: [-1, *entry[1:]],
        lambda entry: [1e300, *entry[1:]],
        lambda entry: ["0", *entry[1:]],
        lambda entry: [10**30, *entry[1:]],
        lambda entry: [entry[0], 10**30, entry[2]],
        lambda entry: [entry[0], 0, entry[2]],
        lambda entry: [entry[0], -entry[1], entry[2]],
        lambda entry: [entry[0], True, entry[2]],
        lambda entry: [*entry[:2], None],
        lambda entry: [*entry[:2], ["x"]],
    ],
)
def test_a_hostile_entry_harms_only_itself(shipped: Path, change: Callable[[list], object]) -> None:
    index = index_of(shipped)
    index["objects"]["add"] = change(index["objects"]["add"])
    rewrite(shipped, index)
    assert found() == {LINEAR.name}


@pytest.mark.parametrize("part", ["made", "objects"])
@pytest.mark.parametrize("content", [None, [], "", 1, {}])
def test_a_part_of_another_type(shipped: Path, part: str, content: object) -> None:
    rewrite(shipped, {**index_of(shipped), part: content})
    assert found() == set()
    assert prebuilt.describe(ISA)


def test_one_kernel_does_not_pass_for_another(shipped: Path) -> None:
    index = index_of(shipped)
    index["objects"] = dict(zip(index["objects"], reversed(index["objects"].values()), strict=True))
    rewrite(shipped, index)
    assert found() == set()


def test_a_folder_in_the_place_of_the_file(shipped: Path, tmp_path: Path) -> None:
    shipped.unlink()
    shipped.mkdir()
    assert load(tmp_path / "store") == ["add", ""]


def test_it_is_described(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prebuilt.describe(ISA) == f"2 kernels for {ISA.name}, each used until it is compiled here"
    assert prebuilt.describe(GENERIC) == "none for generic in this installation"
    monkeypatch.setenv("EDGELLM_PREBUILT", "0")
    assert prebuilt.describe(ISA) == "not used, as EDGELLM_PREBUILT=0 says"


def test_compilers_do_not_matter(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_numba_version", lambda: "0.0")
    monkeypatch.setattr(store_module.llvmlite, "__version__", "0.0")
    assert load(tmp_path / "store") == []


@pytest.mark.skipif(sys.platform != "linux", reason="such wheels are for Linux")
def test_a_wheel_brings_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the tool to a first start of what it built."""
    monkeypatch.delenv("EDGELLM_PREBUILT", raising=False)
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it is not installed")
    tool = Path(__file__).parents[2] / "tools" / "build_wheel.py"
    subprocess.run([sys.executable, tool, "--out", tmp_path, "--only", "add", "linear_amx.Q4_0"], check=True)
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-manylinux_2_17_x86_64.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "installed"], check=True)
    folder = tmp_path / "installed/edgellm/kernels/objects"
    made = {path.stem: json.loads(path.read_bytes().split(b"\n")[1])["objects"] for path in folder.iterdir()}
    assert made.keys() == {isa.name for isa in ALL if isa.portable}
    assert {name for name, objects in made.items() if "linear_amx.Q4_0" in objects} == {AVX512.name}
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
    code += LOAD.format(where=f"assert prebuilt.FOLDER == Path({str(folder)!r})", isa=ISA.name)
    assert python(code, tmp_path / "home").communicate(timeout=60)[0] == "False\n"
