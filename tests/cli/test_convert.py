"""convert, quantize and export as commands: stopped in the middle, on a terminal, and with arguments that cannot be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.cli import main
from edgellm.convert.checkpoints import convert_checkpoint as convert

from ..convert import checkpoints

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals are others there")

# The real command, whose every piece of work takes so long that it can be stopped in the middle.
SLOW = """
import sys, time
from edgellm.cli import main
from edgellm.convert import export
from edgellm.convert.rows import Encoder

encode, rows = Encoder.encode, export._rows

def slow_encode(*args):
    time.sleep(float(sys.argv[1]))
    return encode(*args)

def slow_rows(*args):
    for some in rows(*args):
        time.sleep(float(sys.argv[1]))
        yield some

Encoder.encode, export._rows = slow_encode, slow_rows
sys.exit(main(sys.argv[2:]))
"""
COMMANDS = {
    "convert": ["convert", "MODEL", "-o", "OUT"],
    "quantize": ["quantize", "GGUF", "OUT", "Q8_0"],
    "export": ["export", "GGUF", "-o", "OUT"],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    checkpoints.save("llama", folder / "model")
    convert(folder / "model", folder / "in.gguf")
    return {"MODEL": folder / "model", "GGUF": folder / "in.gguf"}


def slow(command: str, inputs: dict[str, Path], out: Path, seconds: float = 0.3) -> list[str]:
    places = {name: str(path) for name, path in (inputs | {"OUT": out}).items()}
    return [sys.executable, "-c", SLOW, str(seconds), *(places.get(word, word) for word in COMMANDS[command])]


@POSIX
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("command", COMMANDS)
def test_stopped_in_the_middle(command: str, name: str, status: int, inputs: dict[str, Path], tmp_path: Path) -> None:
    """Nothing half-written is left, and what was there stays."""
    out = tmp_path / "out"
    if command != "export":
        out.write_bytes(b"old")
    before = os.listdir(tmp_path)
    running = subprocess.Popen(slow(command, inputs, out), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while os.listdir(tmp_path) == before and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir(tmp_path)) > len(before)  # the temporary: it is in the middle
    running.send_signal(getattr(signal, name))
    _, errors = running.communicate(timeout=60)
    assert running.returncode == status
    assert b"Traceback" not in errors
    assert os.listdir(tmp_path) == before
    assert command == "export" or out.read_bytes() == b"old"


@POSIX
def test_nohup_stays_in_force(inputs: dict[str, Path], tmp_path: Path) -> None:
    ignoring = (
        "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = slow("quantize", inputs, tmp_path / "out", seconds=0.02)
    running = subprocess.Popen([sys.executable, "-c", ignoring, *words], stderr=subprocess.DEVNULL)
    while not os.listdir(tmp_path) and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGHUP)
    assert running.wait(timeout=60) == 0
    assert os.listdir(tmp_path) == ["out"]


@POSIX
def test_progress_on_a_terminal(inputs: dict[str, Path], tmp_path: Path) -> None:
    """A bar with rate and time left that leaves a clean line behind."""
    pexpect = pytest.importorskip("pexpect")
    command, *words = slow("quantize", inputs, tmp_path / "out", seconds=0.1)
    terminal = pexpect.spawn(command, words, dimensions=(24, 120), timeout=60)
    shown = terminal.read().decode()
    terminal.close()
    assert terminal.exitstatus == 0
    *lines, blank, last, end = shown.split("\r")
    assert any(" % of " in line and "B/s, " in line and " s left" in line for line in lines), shown
    assert not blank.strip()
    assert last.startswith("edgellm: wrote ")
    assert end == "\n"


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., None]:
    """Run a command that must end in one line with these words, and write nothing."""

    def check(args: list[str | Path], status: int, *words: str) -> None:
        out = tmp_path / "out" / "o.gguf"
        assert main([*map(str, args), "-o", str(out)]) == status
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.startswith("edgellm: error: ")
        assert errors.count("\n") == 1
        for word in words:
            assert word in errors
        assert not out.parent.exists()

    return check


def test_folders_that_hold_no_checkpoint(refuse: Callable[..., None], inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    refuse(["convert", folder], 1, "no config.json", "it is empty")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    refuse(["convert", folder], 1, "it holds model_index.json", "diffusers")
    (folder / "a.gguf").touch()
    refuse(["convert", folder], 1, "a.gguf", "converted already")
    (folder / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}))
    refuse(["convert", folder], 1, "'MambaForCausalLM'", "LlamaForCausalLM")


def test_files_that_are_no_checkpoint(refuse: Callable[..., None], inputs: dict[str, Path], tmp_path: Path) -> None:
    refuse(["convert", tmp_path / "missing"], 1, "does not exist", "a folder with config.json")
    refuse(["convert", inputs["GGUF"]], 2, "a GGUF file already", "quantize")
    refuse(["convert", inputs["MODEL"] / "model.safetensors"], 2, f"give the folder, {inputs['MODEL']}")
    for name, content in (("a.pt", b"PK\3\4"), ("pytorch_model.bin", b"PK\3\4"), ("old.bin", b"\x80\2\x8a\n")):
        (tmp_path / name).write_bytes(content + bytes(100))
        refuse(["convert", tmp_path / name], 2, name, "alone is no checkpoint")
    (tmp_path / "short.bin").write_bytes(b"PK")
    refuse(["convert", tmp_path / "short.bin"], 1, "short.bin", "too few for a llama2.c model")


@pytest.mark.parametrize("name", ["hf:", "hf:a", "hf:a/b/c", "hf:../x", "hf:a/b@", "hf:a/b@x/y", "hf:a\n/b"])
def test_names_that_name_no_repository(name: str, refuse: Callable[..., None]) -> None:
    refuse(["convert", name], 2, "does not name a checkpoint", "hf:ORG/REPO")


def test_options_that_cannot_be(refuse: Callable[..., None], inputs: dict[str, Path]) -> None:
    model = inputs["MODEL"]
    refuse(["convert", model, "--type", "nonsense"], 2, "'nonsense'", "Q4_K_M")
    refuse(["convert", model, "-t", "0"], 2, "-t/--threads is 0")
    refuse(["convert", model, "--base", model], 2, "no adapter", "--base")
    refuse(["convert", model, "--tokenizer", "x"], 2, "--tokenizer")
    refuse(["convert", model, "--tensor-type", "blk"], 2, "PATTERN=TYPE")
    refuse(["export", inputs["GGUF"], "--type", "q8_0"], 2, "'f16', 'bf16', 'f32'")
    refuse(["export", model], 2, "is a checkpoint", f"edgellm convert {model}")


def test_no_file_of_the_checkpoint_is_written_over(inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        before = (inputs["MODEL"] / name).read_bytes()
        assert main(["convert", str(inputs["MODEL"]), "-o", str(inputs["MODEL"] / name)]) == 2
        assert "is a file that is being read" in capsys.readouterr().err
        assert (inputs["MODEL"] / name).read_bytes() == before


@POSIX
@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "README.md"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name: str, inputs: dict[str, Path], tmp_path: Path) -> None:

    folder = Path(shutil.copytree(inputs["MODEL"], tmp_path / "model"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    words = [sys.executable, "-m", "edgellm", "convert", str(folder), "-o", str(tmp_path / "out.gguf")]
    done = subprocess.run(words, capture_output=True, timeout=60)
    assert done.returncode == (1 if name == "config.json" else 0), done.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_what_is_known_at_the_start_is_said_then(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a checkpoint is fetched, or a file opened."""
    monkeypatch.setattr("edgellm.hub.pull_checkpoint", lambda *_: pytest.fail("too late"))
    for args, words in (
        (["convert", "hf:a/b", "-o", "/proc/out.gguf"], "/proc cannot be written"),
        (["convert", "hf:a/b", "-o", "o.gguf", "--type", "Q9"], "'Q9'"),
        (["convert", "hf:a/b", "-o", "o.gguf", "--tensor-type", "a=b"], "'b'"),
        (["convert", str(inputs["MODEL"]), "-o", "/proc/out.gguf"], "/proc cannot be written"),
        (["export", str(inputs["GGUF"]), "-o", "/proc/out"], "/proc/out cannot be written"),
    ):
        assert main(args) in (1, 2)
        assert words in capsys.readouterr().err


def test_a_type_that_fits_no_row_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=checkpoints.N_VOCAB, hidden_size=48, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=3, head_dim=16)  # fmt: skip
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(tmp_path / "model")
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), "-o", str(tmp_path / "o.gguf"), "--type", "Q4_K_M"]) == 0
    errors = capsys.readouterr().err
    assert "rows of 48 weights" in errors and "calls itself F16" in errors
    assert main(["quantize", str(tmp_path / "o.gguf"), str(tmp_path / "q.gguf"), "Q4_K_M"]) == 0
    errors = capsys.readouterr().err
    assert "rows of 48 weights" in errors and "calls itself F16" in errors and "q.gguf, F16, " in errors
