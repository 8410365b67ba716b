"""`edgellm serve` as a command: what it says, how it begins and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("uvicorn", reason="the extra `server` is not installed")

from .conftest import REAL


@contextmanager
def serving(*args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it says."""
    process = subprocess.Popen(
        [*REAL, "serve", *args, "--port", "0"], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stderr is not None
        address = ""
        for line in process.stderr:
            if found := re.search(r"listening on (http://\S+)", line):
                address = found[1]
                break
        assert address
        yield process, address
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process hears")
def test_it_answers_tells_its_status_and_ends_in_order(edgellm, tiny_path) -> None:
    with serving(f"small={tiny_path}", "--log", "json") as (process, address):
        with urllib.request.urlopen(f"{address}/v1/models") as answer:
            assert [model["id"] for model in json.load(answer)["data"]] == ["small"]
        port = address.rsplit(":", 1)[1]
        status = edgellm("serve", "--status", "--port", port, real=True)
        assert status.returncode == 0 and "small" in status.stdout and "0 waiting" in status.stdout
        other = edgellm("serve", str(tiny_path), "--port", port, real=True)
        assert other.returncode == 2
        assert other.stderr.strip().splitlines()[-1].startswith(f"edgellm: error: --port is {port}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr is not None
        records = [json.loads(line) for line in process.stderr]
        assert [record["path"] for record in records] == ["/v1/models", "/status"]


def test_keys(edgellm, tmp_path) -> None:
    file = tmp_path / "keys"
    made = [edgellm("serve", "--new-key", name, "--api-keys", str(file), real=True) for name in ("ann", "bob")]
    keys = [one.stdout.strip() for one in made]
    assert all(key.startswith("sk-") and len(key) > 30 for key in keys) and len(set(keys)) == 2
    text = file.read_text()
    assert not any(key in text for key in keys) and "ann sha256:" in text and "bob sha256:" in text
    again = edgellm("serve", "--new-key", "ann", "--api-keys", str(file), real=True)
    assert again.returncode == 2 and "ann already" in again.stderr
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["no-such-model"], "no-such-model"),
        (["--host", "203.0.113.7"], "--host"),
        (["--host", "no such host"], "--host"),
        (["--parallel", "0"], "--parallel"),
        (["--timeout", "-1"], "--timeout"),
        (["--api-key", "short"], "--api-key"),
        (["--api-keys", "/no/such/file"], "/no/such/file"),
        (["--new-key", "ann"], "--api-keys"),
        (["--new-key", "an n", "--api-keys", "keys"], "--new-key"),
        (["--ctx", "0"], "--ctx"),
        (["=x.gguf"], "x.gguf"),
    ],
)
def test_what_cannot_be_is_one_line(edgellm, home, tmp_path, words, what) -> None:
    done = edgellm("serve", *words, "--port", "0", real=True, cwd=tmp_path)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert what in line and "Traceback" not in done.stderr


def test_a_file_that_is_no_model_is_said_at_once(edgellm, home, tmp_path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    done = edgellm("serve", str(tmp_path / "broken.gguf"), "--port", "0", real=True)
    assert done.returncode == 1
    assert "broken.gguf" in done.stderr.strip().splitlines()[-1]


def test_two_models_of_one_name(edgellm, tiny_path) -> None:
    done = edgellm("serve", f"a={tiny_path}", f"a={tiny_path}", "--port", "0", real=True)
    assert done.returncode == 2 and "called a" in done.stderr


def test_no_server_has_no_status(edgellm) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = edgellm("serve", "--status", "--port", str(port), real=True)
    assert done.returncode == 1 and "edgellm serve starts one" in done.stderr
