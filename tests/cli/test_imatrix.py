"""edgellm imatrix: the file it writes, and the files it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgellm as package
from edgellm.cli import main
from edgellm.convert.imatrix import collect_imatrix
from edgellm.formats.imatrix import read_imatrix
from tests.arch import tiny

TEXT = "the rain in the hills, he said; " * 8


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.llama().save(tmp_path / "tiny.gguf", "Q8_0")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_a_file_of_means(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["imatrix", "tiny.gguf", "-f", "text.txt", "-c", "32", "--chunks", "2"]
    assert main([*args, "-o", "out.gguf"]) == 0
    out, err = capsys.readouterr()
    assert out == "out.gguf: importance of 14 tensors, from 2 windows of 32 tokens\n"
    assert err.splitlines()[-1] == "edgellm: collecting (2)"
    with package.load("tiny.gguf", n_ctx=32, observe=True) as model:
        expected = collect_imatrix(model, model.tokenize(TEXT, add_special=True), 32, 2)
    found = read_imatrix("out.gguf")
    assert (found.n_chunks, found.chunk_size, found.datasets) == (2, 32, ("text.txt",))
    for name, mean in expected.tensors.items():
        np.testing.assert_allclose(found.tensors[name], mean, rtol=3e-7)

    assert main([*args, "-o", "with_head.gguf", "--process-output", "-t", "1"]) == 0
    assert set(read_imatrix("with_head.gguf").tensors) == {*expected.tensors, "output.weight"}
    assert sorted(path.name for path in here.iterdir()) == ["out.gguf", "text.txt", "tiny.gguf", "with_head.gguf"]


@pytest.mark.parametrize(
    ("args", "status", "line"),
    [
        (["-o", "out.gguf"], 2, "the text has {n} tokens and one window needs 512; "
                                "give a longer text or a shorter window"),
        (["-o", "tiny.gguf", "-c", "32"], 2, "tiny.gguf would be written over what is being read; choose another name"),
        (["-o", "text.txt", "-c", "32"], 2, "text.txt would be written over what is being read; choose another name"),
        (["-o", ".", "-c", "32"], 2, ". is a folder; expected the name of a file to write"),
        (["-o", "text.txt/out.gguf", "-c", "32"], 1, "text.txt: File exists"),
    ],
)  # fmt: skip
def test_nothing_is_harmed(here: Path, args: list[str], status: int, line: str, capsys) -> None:
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    with package.load("tiny.gguf") as model:
        n = len(model.tokenize(TEXT, add_special=True))
    assert main(["imatrix", "tiny.gguf", "-f", "text.txt", *args]) == status
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", f"edgellm: error: {line.format(n=n)}")
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("target", ["/proc/out.gguf", "/proc/a/b.gguf", "/dev/null"])
def test_a_target_that_cannot_be_written_is_told_first(here: Path, target: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("edgellm.load", lambda *_, **__: pytest.fail("too late"))
    assert main(["imatrix", "tiny.gguf", "-f", "text.txt", "-o", target, "-c", "32"]) in (1, 2)
    assert target.rpartition("/")[0] in capsys.readouterr().err
