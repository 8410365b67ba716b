"""Requests are read within bounds, by httptools as by h11, and answers are the same in both event loops."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgellm.server import protocol
from edgellm.server.protocol import MOST_HEAD

from .running import Running, running

QUICK = ("httptools", "uvloop")
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "the tea"}], "max_tokens": 8, "temperature": 0,
         "stream": True}  # fmt: skip
START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module", params=["quick", "plain"])
def server(request: pytest.FixtureRequest, tiny_chat: Path) -> Iterator[Running]:
    if request.param == "quick":
        for name in QUICK:
            pytest.importorskip(name)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            find = importlib.util.find_spec
            patch.setattr(protocol, "find_spec", lambda name: None if name in QUICK else find(name))
        with running({"tiny": tiny_chat}) as made:
            yield made


def sent(server: Running, *parts: bytes, most: int = 64) -> bytes:
    """What the server says to some bytes, the last of which may be sent again and again; b"" if it only hangs up."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        got = b""
        with suppress(ConnectionError):
            for part in parts[:-1]:
                client.sendall(part)
            for _ in range(most):
                client.sendall(parts[-1])
        with suppress(ConnectionError):
            while data := client.recv(65536):
                got += data
    return got


PIECE = 32 << 10


@pytest.mark.parametrize(
    "parts",
    [
        (b"GET /", b"a" * PIECE),
        (START + b"x: ", b"a" * PIECE),
        (START, b"a" * PIECE),
        (START, b"".join(b"x%d: a\r\n" % i for i in range(3000))),
        (START + b"Content-Length: 2\r\nx: " + b"a" * (2 * MOST_HEAD), b"\r\nConnection: close\r\n\r\n{}"),
    ],
    ids=["an address", "a value", "a name", "many", "whole"],
)
def test_a_head_that_is_too_large_is_refused(server: Running, parts: tuple[bytes, ...]) -> None:
    got = sent(server, *parts)
    assert not got or got.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert server.get("/health").status_code == 200


def test_trailers_are_bounded_as_well(server: Running) -> None:
    got = sent(server, START + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"x: " + b"a" * PIECE + b"\r\n")
    assert b"200 OK" not in got
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize("n", [1, 50_000])
def test_a_body_may_come_in_any_pieces(server: Running, n: int) -> None:
    body = json.dumps({**ASKED, "metadata": {"more": "a" * 300_000 if n > 1 else ""}}).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + n]), body[i : i + n]) for i in range(0, len(body), n))
    for head in (START + b"Cookie: " + b"a" * 30_000 + b"\r\n", START):
        head += b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        got = sent(server, head + chunks + b"0\r\n\r\n", most=1)
        assert got.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in got


def test_a_stream_says_what_the_whole_answer_does(server: Running) -> None:
    whole = server.post("/v1/chat/completions", {**ASKED, "stream": False}).json()
    answer = server.post("/v1/chat/completions", {**ASKED, "logprobs": True})
    told = server.post("/v1/chat/completions", ASKED)
    for stream in (answer, told):
        *events, last = stream.text.split("\n\n")[:-1]
        assert last == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        assert "".join(deltas) == whole["choices"][0]["message"]["content"]
        assert all(set(choice) == {"index", "delta", "logprobs", "finish_reason"} for chunk in chunks
                   for choice in chunk["choices"])  # fmt: skip


def error_in(got: bytes) -> tuple[int, dict]:
    """The status and the body of a response, which ends with it."""
    head, _, body = got.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert headers[b"content-type"] == b"application/json" and headers[b"connection"] == b"close"
    assert int(headers[b"content-length"]) == len(body)
    return int(head.split(b" ")[1]), json.loads(body)


@pytest.mark.parametrize(
    "what",
    [b"no HTTP at all\r\n\r\n", b"GET / HTTP/1.1\r\nno field\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
     START + b"Content-Length: many\r\n\r\n"],
    ids=["a text", "a line without a name", "the beginning of TLS", "a length that is none"],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_the_shape_of_other_errors(server: Running, what: bytes) -> None:
    status, body = error_in(sent(server, what, most=1))
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error" and "HTTP" in body["error"]["message"]


def test_a_head_that_is_too_large_is_refused_in_the_words_of_its_interface(server: Running) -> None:
    fields = b"x: " + b"a" * (MOST_HEAD + 100)  # which has no end, so that h11 still knows the first line
    for path, about in (("/v1/chat/completions", ("error", "message")), ("/v1/messages", ("error", "message")),
                        ("/api/chat", ("error",))):  # fmt: skip
        status, body = error_in(sent(server, f"POST {path}?beta=true HTTP/1.1\r\n".encode() + fields, most=1))
        assert status == 431
        message = body
        for name in about:
            message = message[name]
        assert str(MOST_HEAD) in message
        assert (body.get("type") == "error") == (path == "/v1/messages")


def test_more_requests_than_can_be_open_are_refused_in_the_words_of_their_interface(server: Running) -> None:
    metrics = server.application.server.metrics
    metrics.n_open += 10_000
    try:
        for path, about in (("/v1/messages", "overloaded_error"), ("/v1/chat/completions", "server_error")):
            answer = server.post(path, ASKED)
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, about)
            assert answer.headers["retry-after"] and answer.headers["connection"] == "close"
    finally:
        metrics.n_open -= 10_000
    assert server.get("/health").status_code == 200


def test_a_refusal_is_not_put_into_an_answer_that_is_on_its_way(server: Running) -> None:
    body = json.dumps({**ASKED, "max_tokens": 400, "logit_bias": {"2": -100}}).encode()
    asked = START + b"Content-Length: %d\r\n\r\n" % len(body) + body
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(asked)
        got = client.recv(65536)
        client.sendall(b"no HTTP at all\r\n\r\n" * 2)
        with suppress(ConnectionError):
            while data := client.recv(65536):
                got += data
    answer = got.partition(b"\r\n0\r\n\r\n")[0]  # h11 looks at what comes next when this has been written
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1
