"""pull, rm and run of people: what is said, and in how many lines."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.cli import main
from edgellm.hub import present

from .conftest import MODEL_BYTES
from .stand_in import StandIn, sha256, wait_until


def test_pull_mends_resumes_and_prints_the_path(
    endpoint: StandIn, own_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, data = "hf:some/repo/x.gguf", MODEL_BYTES

    def pull() -> tuple[str, str]:
        assert main(["pull", name]) == 0
        shown = capfd.readouterr()
        return shown.out, shown.err

    endpoint.commit("some/repo", {"x.gguf": data})
    path = own_home / "models/hf/some/repo/x.gguf"
    out, err = pull()
    assert out == f"{path}\n"
    assert err.startswith(f"edgellm: pulling {name}\nedgellm: fetching x.gguf (")
    endpoint.requests.clear()
    out, err = pull()
    assert (out, err) == (f"{path}\n", "")
    assert endpoint.requests == []
    path.write_bytes(data[:-1])
    out, err = pull()
    assert out == f"{path}\n"
    assert f"edgellm: x.gguf is damaged: it has {len(data) - 1:,} bytes, expected {len(data):,}; it is" in err
    assert path.read_bytes() == data
    path.unlink()
    part = own_home / f"models/.partial/hf/some/repo/x.gguf/{sha256(data)[:12]}-x.gguf.fetched.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(data[:10_000])
    out, err = pull()
    assert out == f"{path}\n"
    assert "edgellm: fetching x.gguf: resuming at 10.0 kB of 1.0 MB\n" in err
    assert path.read_bytes() == data


@pytest.mark.parametrize("command", ["pull", "rm", "run", "info"])
@pytest.mark.parametrize("name", ["smolm2", "hf:some/repo:", "hf://some/x.gguf", "x" * 5000, "nowhere/x.gguf"])
def test_names_that_are_none_are_one_line(
    own_home: Path, command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, name]) in (1, 2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("edgellm: error: ") and shown.err.count("\n") == 1
    if name == "smolm2" and command != "rm":
        assert "did you mean smollm2?" in shown.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the name of the model is empty; known are smollm2-135m"),
        ("some/repo", "some/repo is no name of a model; a repository of the Hugging Face hub is hf:some/repo"),
        ("some/repo/x.gguf", "no name of a model; a file of the Hugging Face hub is hf:some/repo/x.gguf"),
        ("./x.gguf", "./x.gguf is no name of a model; `edgellm list` shows names"),
        ("https://example.org/x.gguf", "is an address, and models are fetched from those of the Hugging Face hub"),
        ("ollama:nobody", "Ollama holds no 'ollama:nobody' on this machine"),
        ("https://hf.co/a/b/resolve/v2/x.safetensors", "named by its repository: edgellm run hf:a/b@v2 --convert"),
        ("HERE", "is a file that is here already, and nobody knows where it is fetched from; expected the name"),
        ("FOLDER", "is a folder that is here already"),
        ("mine.gguf", "mine.gguf is a file that is here already"),
        ("/no/such/file.gguf", "/no/such/file.gguf is no name of a model"),
        ("../models/mine.gguf", "../models/mine.gguf is no name of a model"),
    ],
)
def test_what_cannot_be_pulled_is_told(
    own_home: Path, tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_home / "models").mkdir(parents=True)
    for place in (own_home / "models" / "mine.gguf", tmp_path / "HERE"):
        place.write_bytes(b"GGUF")
    typed = {"HERE": str(tmp_path / "HERE"), "FOLDER": str(tmp_path)}.get(name, name)
    assert main(["pull", typed]) in (1, 2)
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.startswith("edgellm: error: ") and not shown.out


def test_of_several_models_those_that_can_be_are_pulled(
    endpoint: StandIn, own_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint.commit("some/repo", {"x.gguf": b"GGUF1", "y.gguf": b"GGUF2"})
    names = [f"hf:some/repo/{file}.gguf" for file in ("x", "none", "y")]
    assert main(["pull", *names]) == 1
    shown = capfd.readouterr()
    assert shown.out.splitlines() == [str(own_home / f"models/hf/some/repo/{file}.gguf") for file in ("x", "y")]
    assert (
        "edgellm: hf:some/repo/none.gguf cannot be pulled: hf:some/repo: some/repo has no file none.gguf" in shown.err
    )
    assert shown.err.splitlines()[-1] == "edgellm: error: 1 of 3 models were not pulled; the lines above say why"
    endpoint.requests.clear()
    assert main(["pull", "hf:other/repo/x.gguf", "hf:wrong"]) == 2  # what cannot be is said before anything is fetched
    assert endpoint.requests == []


def test_a_home_that_cannot_be_is_told(
    endpoint: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint.commit("some/repo", {"x.gguf": b"GGUF1"})
    own_home.write_text("a file")
    assert main(["pull", "hf:some/repo/x.gguf"]) == 1
    said = f"nothing can be kept in {own_home}: Not a directory; EDGELLM_HOME can name another folder"
    assert said in capfd.readouterr().err


def test_an_address_is_no_missing_file(own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "https://example.org/x.gguf", "hello"]) == 2
    assert "is an address, and models are fetched from those of the Hugging" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C of POSIX")
def test_ctrl_c_says_that_the_part_is_kept(endpoint: StandIn, own_home: Path) -> None:
    endpoint.commit("some/repo", {"x.gguf": b"GGUF" + bytes(1_000_000)})
    endpoint.stall_after = 500_000
    child = subprocess.Popen(
        [sys.executable, "-m", "edgellm", "pull", "hf:some/repo/x.gguf"],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_until(lambda: any(model.n_bytes for model in present()))
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130
    assert said.decode().splitlines()[-1] == (
        "edgellm: stopped; what has come is kept: edgellm pull hf:some/repo/x.gguf goes on, "
        "edgellm rm hf:some/repo/x.gguf deletes it"
    )
