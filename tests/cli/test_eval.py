"""edgellm eval: the figures of a tiny model as lines and as JSON, and what cannot be scored."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import edgellm as package
from edgellm.cli import main
from edgellm.evaluate import divergence, perplexity
from tests.arch import tiny

NUMBER = r"[\d.]+"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    checkpoint = tiny.llama()
    checkpoint.save(folder / "f32.gguf")
    checkpoint.save(folder / "q4.gguf", "Q4_0")
    metadata = checkpoint.metadata | {"tokenizer.ggml.tokens": [*checkpoint.metadata["tokenizer.ggml.tokens"]]}
    metadata["tokenizer.ggml.tokens"][-1] = "other"
    tiny.Checkpoint(checkpoint.model, metadata, checkpoint.tensors).save(folder / "other.gguf")
    (folder / "text.txt").write_text("the rain in the hills, he said; " * 8, encoding="utf-8")
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def ids_of(model: package.Model, folder: Path) -> list[int]:
    return model.tokenize((folder / "text.txt").read_text(encoding="utf-8"), add_special=True)


def test_perplexity(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with package.load("q4.gguf", n_ctx=32) as model:
        expected = perplexity(model, ids_of(model, folder), 32, 3)
    assert main(["eval", "perplexity", "q4.gguf", "-f", "text.txt", "-c", "32", "--chunks", "3", "-t", "1"]) == 0
    out, err = capsys.readouterr()
    *lines, speed = out.splitlines()
    assert lines == [
        "model           q4.gguf",
        "text            text.txt, 3 windows of 32 tokens, 45 tokens scored",
        f"perplexity      {expected.perplexity:.4f} ± {expected.perplexity_error:.4f}",
    ]
    assert re.fullmatch(rf"speed           \d+ tok/s, {NUMBER} s, 1 thread", speed)
    assert err.splitlines()[-1] == "edgellm: perplexity (3)"


def test_perplexity_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "perplexity", "q4.gguf", "-f", "text.txt", "--ctx", "32", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["text"], result["n_ctx"]) == ("q4.gguf", "text.txt", 32)
    assert result["perplexity"] > 1 and 0 < result["perplexity_error"] < result["perplexity"]


def test_kl(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with package.load("q4.gguf", n_ctx=32) as model, package.load("f32.gguf", n_ctx=32) as base:
        expected = divergence(model, base, ids_of(base, folder), 32)
    args = ["eval", "kl", "q4.gguf", "--base", "f32.gguf", "-f", "text.txt", "-c", "32"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    *lines, speed = out.splitlines()
    found = expected
    assert lines == [
        "model           q4.gguf",
        "base            f32.gguf",
        f"text            text.txt, {found.n_windows} windows of 32 tokens, {found.n_scored} tokens scored",
        f"KL divergence   {found.mean:.6f} ± {found.mean_error:.6f} mean",
        f"                {found.median:.6f} median",
        f"                {found.percentile_99:.6f} 99th percentile",
        f"                {found.maximum:.6f} maximum",
        f"same top token  {100 * found.same_top:.2f} ± {100 * found.same_top_error:.2f} %",
        f"true token      {100 * found.rms_probability_difference:.3f} % root mean square change of its probability",
        f"perplexity      {found.perplexity:.4f} ± {found.perplexity_error:.4f}",
        f"                {found.base_perplexity:.4f} ± {found.base_perplexity_error:.4f} of the base",
        f"                {found.ln_ratio:+.6f} ± {found.ln_ratio_error:.6f} ln of their ratio",
    ]
    assert re.fullmatch(rf"speed           \d+ tok/s, {NUMBER} s, \d threads?", speed)
    assert err.splitlines()[-1] == f"edgellm: divergence ({found.n_windows})"

    assert main([*args, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["base"], result["mean"], result["maximum"]) == ("f32.gguf", found.mean, found.maximum)


def test_special_tokens_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("special.txt").write_text("</s>" * 20, encoding="utf-8")
    args = ["eval", "perplexity", "q4.gguf", "-f", "special.txt", "-c", "50"]
    assert main(args) == 0  # as plain text, four tokens each
    assert main([*args, "--parse-special"]) == 2
    assert "the text has 21 tokens and one window needs 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "status", "line"),
    [
        (["perplexity", "q4.gguf"], 2, "Missing option '-f' / '--file' (see: edgellm eval perplexity --help)"),
        (["kl", "q4.gguf", "-f", "text.txt"], 2, "Missing option '--base' (see: edgellm eval kl --help)"),
        (
            ["perplexity", "q4.gguf", "-f", "text.txt"],
            2,
            r"the text has \d+ tokens and one window needs 512; give a longer text or a shorter window",
        ),
        (
            ["perplexity", "q4.gguf", "-f", "empty.txt", "-c", "32"],
            2,
            "the text has 1 token and one window needs 32; .*",
        ),
        (["perplexity", "q4.gguf", "-f", "no.txt"], 1, "no.txt: No such file or directory"),
        (["perplexity", "q4.gguf", "-f", "."], 1, r"\.: Is a directory"),
        (
            ["perplexity", "q4.gguf", "-f", "latin.txt"],
            1,
            "latin.txt is not UTF-8 text: byte 0xe9 at 1; convert it first",
        ),
        (["perplexity", "no.gguf", "-f", "text.txt"], 1, ".*no.gguf.*"),
        (
            ["perplexity", "q4.gguf", "-f", "text.txt", "-c", "5000"],
            2,
            "a context of 5000 tokens was asked for; this model was trained on 1024: choose .* up to that",
        ),
        (
            ["kl", "other.gguf", "--base", "f32.gguf", "-f", "text.txt", "-c", "32"],
            2,
            "token 319 is 'other' to other.gguf and .* to f32.gguf; models can be compared only .*",
        ),
    ],
)
def test_what_cannot_be_scored(args: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *args]) == status
    out, err = capsys.readouterr()
    assert out == ""
    if line.startswith("Missing"):
        line = re.escape(line)
    assert re.fullmatch(f"edgellm: error: {line}", err.splitlines()[-1])
