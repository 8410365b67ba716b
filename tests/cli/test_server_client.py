"""What answers at an address may be anything, or nothing; and an address may be none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgellm.cli import main, server_client


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """The address of something that sends this, whatever it is asked; says nothing, where it is empty."""
    over = threading.Event()

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                if over.is_set():
                    return
                connection.recv(65536)
                connection.sendall(reply)
                if not reply:
                    over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            socket.create_connection(listening.getsockname()).close()  # accept ends
            thread.join(60)


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n", "is no edgellm: it does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "it does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "is no edgellm: it "),
        (http(b"<html>"), "it sends no JSON"),
        (http(b"[" * 100_000), "it sends no JSON"),
        (http(b"{}"), "is no edgellm: it "),
        (http(b'{"data": [1]}'), "is no edgellm: it "),
        (http(b"", "302 Found", "Location: http://127.0.0.1:9"), "is no edgellm (status 302)"),
        (http(b"", "401 Unauthorized"), "wants a key; give it with --api-key"),
    ],
)
def test_something_else_answers(reply: bytes, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(reply) as address:
        for words in (["launch", "zed", "--url", address], ["serve", "--status", "--port", address.rpartition(":")[2]]):
            assert main(words) == 1
            error = capsys.readouterr().err
            assert said in error and address in error and error.count("\n") == 1


def test_a_server_that_is_busy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(server_client, "SECONDS", 0.1)
    with answering(b"") as address:
        assert main(["launch", "zed", "--url", address]) == 1
    assert "says nothing for 0.1 seconds; if it is loading a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    ["ftp://a", "localhost:8080", "http://", "http://:8080", "http://127.0.0.1:abc", "http://127.0.0.1:99999",
     "http://[::1", "http://a b", "http://a\nb", "http://..", "http://me:secret@127.0.0.1", "http://127.0.0.1/?a=1"],
)  # fmt: skip
def test_what_is_no_address(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "zed", "--url", url]) == 2
    assert "http://127.0.0.1:8080" in capsys.readouterr().err


def test_what_is_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("a\nb", "ключ"):
        assert main(["launch", "zed", "--api-key", key]) == 2
        assert "the key has letters" in capsys.readouterr().err
