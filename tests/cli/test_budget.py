"""edgellm quantize --budget and --report, on a tiny model from end to end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgellm.cli.app import main
from edgellm.cli.budget import judgement
from tests.convert import checkpoints


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgellm.convert.checkpoints import convert_checkpoint

    folder = tmp_path_factory.mktemp("model")
    checkpoints.save("llama", folder / "hf")
    convert_checkpoint(folder / "hf", folder / "in.gguf")
    return folder / "in.gguf"


def test_a_size(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(model), str(out), "--budget", "150k", "--report"]) == 0
    assert out.stat().st_size <= 150_000 < model.stat().st_size
    shown = capsys.readouterr().out
    for words in ("blk.0.attn_q", "token_embd", "expected: ", "measured: ", "KL divergence", "same top token"):
        assert words in shown


def test_a_loss(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for allowed in (0.5, 0.005):
        assert main(["quantize", str(model), str(tmp_path / "out.gguf"), "--budget", f"kl={allowed}"]) == 0
        measured = re.search(r"measured: .* a loss of ([\d.]+)", capsys.readouterr().out)
        assert measured and float(measured[1]) <= allowed
        sizes[allowed] = (tmp_path / "out.gguf").stat().st_size
    assert sizes[0.5] < sizes[0.005]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "either a TYPE"),
        (["Q4_0", "--budget", "1MB"], "either a TYPE"),
        (["--budget", "much"], "no budget"),
        (["--budget", "2k"], "smallest types"),
        (["--budget", "1MB", "--tensor-type", "ffn=q8_0"], "--tensor-type"),
        (["Q4_0", "-f", "text.txt"], "-f/--file is for --budget and --report"),
        (["Q4_0", "--activations", "f32"], "--activations is for --budget and --report"),
    ],
)
def test_what_cannot_be(model: Path, tmp_path: Path, args: list[str], words: str, capsys) -> None:
    assert main(["quantize", str(model), str(tmp_path / "out.gguf"), *args]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize(
    ("target", "args", "status", "words"),
    [
        ("out.gguf", ["--budget", "2k"], 2, "smallest types"),
        ("out.gguf", ["--budget", "0.001MB", "--report"], 2, "smallest types"),
        ("/proc/out.gguf", ["--budget", "1MB"], 1, "/proc cannot be written"),
        ("/proc/out.gguf", ["Q8_0", "--report"], 1, "/proc cannot be written"),
        ("out.gguf", ["Q8_0", "--report", "--tensor-type", "x=y"], 2, "'y'"),
        ("MODEL", ["Q8_0", "--report"], 2, "being read"),
        ("MODEL", ["--budget", "kl=0.1"], 2, "being read"),
    ],
)
def test_what_is_known_at_the_start_is_said_then(
    model: Path, tmp_path: Path, monkeypatch, target: str, args: list[str], status: int, words: str, capsys
) -> None:
    """Before a model is loaded, let alone measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgellm.cli.models.load", lambda *_: pytest.fail("too late"))
    assert main(["quantize", str(model), str(model) if target == "MODEL" else target, *args]) == status
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_quantized_already(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert main(["quantize", str(model), str(tmp_path / "q8.gguf"), "Q8_0"]) == 0
    monkeypatch.setattr("edgellm.cli.models.load", lambda *_: pytest.fail("too late"))
    assert main(["quantize", str(tmp_path / "q8.gguf"), str(tmp_path / "out.gguf"), "--budget", "1GB"]) == 2
    assert "Q8_0 already" in capsys.readouterr().err


def test_judgements_grow_worse() -> None:
    words = [judgement(loss) for loss in (0.001, 0.008, 0.03, 0.1, 0.4, 2.0)]
    assert len(set(words)) == 6
