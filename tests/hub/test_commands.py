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
