"""Text that goes from the driver's thread straight to a client's socket: all of it, in order, and to nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm.engine import Generation
from edgellm.server import driver
from edgellm.server import wire as wire_module
from edgellm.server.driver import Answers
from edgellm.server.wire import Wire

from .running import Running, running, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="text goes by the event loop there")

MESSAGES = [{"role": "user", "content": "ab"}]
ASKED = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24, "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def one_by_one(tiny_chat: Path) -> Iterator[Running]:
    """A server that guesses no tokens, so that each comes by itself."""
    with running({"tiny": tiny_chat}, runtime=edgellm.RuntimeConfig(speculate="off")) as server:
        yield server


def connected(work: Callable[[Wire, asyncio.Transport, socket.socket], Awaitable[None]]) -> None:
    """Run something with a wire, its transport and the client at the other end."""

    async def go() -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(5)
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        wire = Wire(transport)
        try:
            await work(wire, transport, theirs)
        finally:
            wire.close()
            transport.close()
            theirs.close()

    asyncio.run(go())


def test_nothing_is_written_that_was_not_offered() -> None:
    async def work(wire: Wire, transport: asyncio.Transport, client: socket.socket) -> None:
        def never() -> bytes:
            raise AssertionError("it was asked for")

        assert not wire.send(0, never)
        wire.offer(2)
        assert not wire.send(3, never)  # a part is on its way to the event loop, which comes first
        assert wire.send(2, lambda: b"two words")
        assert wire.send(2, lambda: b"")  # which would be the end of the answer
        assert client.recv(100) == b"9\r\ntwo words\r\n"
        wire.stop()
        assert not wire.send(2, never)
        wire.close()
        wire.offer(2)
        assert not wire.send(2, never)

    connected(work)


def test_what_waits_in_the_transport_goes_first() -> None:
    async def work(wire: Wire, transport: asyncio.Transport, client: socket.socket) -> None:
        much = b"a" * (8 << 20)
        transport.write(much)
        assert transport.get_write_buffer_size()
        wire.offer(0)
        assert not wire.send(0, lambda: b"x")

    connected(work)


def test_a_client_that_reads_slowly_gets_everything_in_order() -> None:
    async def work(wire: Wire, transport: asyncio.Transport, client: socket.socket) -> None:
        wire.offer(0)
        texts = []
        while wire.send(0, lambda: b"%05d" % len(texts) + b"a" * 5000):
            texts.append(b"138d\r\n%05d" % len(texts) + b"a" * 5000 + b"\r\n")
        assert len(texts) > 1
        wire.stop()
        transport.write(b"the end")
        expected, got = b"".join(texts) + b"the end", b""
        while len(got) < len(expected):
            got += await asyncio.to_thread(client.recv, 1 << 20)
        assert got == expected
        await asyncio.sleep(0)
        wire.offer(0)
        assert wire.send(0, lambda: b"more")  # it is taken up again

    connected(work)


def test_a_client_that_has_left_harms_nobody() -> None:
    async def work(wire: Wire, transport: asyncio.Transport, client: socket.socket) -> None:
        wire.offer(0)
        client.close()
        while wire.send(0, lambda: b"x" * 1000):
            pass
        assert not wire.send(0, lambda: b"x")
        await asyncio.sleep(0.01)
        assert transport.is_closing()

    connected(work)


def streams(server: Running) -> list[str]:
    """What every interface streams, but for names and times."""
    message = {"model": "tiny", "max_tokens": 24, "stream": True}
    found = [
        server.post("/v1/chat/completions", {**ASKED, "n": 2}),
        server.post("/v1/completions", {**message, "prompt": "ab", "temperature": 0}),
        server.post("/v1/messages", {**message, "messages": MESSAGES, "temperature": 0}),
        server.post("/v1/responses", {"model": "tiny", "input": "ab", "max_output_tokens": 24, "temperature": 0,
                                      "stream": True}),
        server.post("/api/chat", {"model": "tiny", "messages": MESSAGES,
                                  "options": {"num_predict": 24, "temperature": 0}}),
    ]  # fmt: skip
    assert all(answer.status_code == 200 for answer in found)
    return [answer.text for answer in found]


def texts_of(stream: str) -> list[Any]:
    """The pieces of text in a stream, and where each stands."""
    found: list[Any] = []
    for line in stream.splitlines():
        line = line.removeprefix("data: ")
        if not line.startswith("{"):
            continue
        part = json.loads(line)
        for choice in part.get("choices", ()):
            text = choice.get("text") or choice.get("delta", {}).get("content")
            found.append((choice["index"], text, choice["finish_reason"]))
        delta = part.get("delta")
        text = delta if isinstance(delta, str) else (delta or {}).get("text")
        if text or "sequence_number" in part or "index" in part:
            found.append((part["type"], part.get("sequence_number"), part.get("index"), text))
        if "message" in part and "done" in part:
            found.append((part["message"]["content"], part["done"]))
    return found


@pytest.mark.parametrize("most", [None, 7, 0], ids=["as it comes", "a few bytes at a time", "nothing at once"])
def test_every_interface_streams_the_same_by_either_way(one_by_one, monkeypatch, most) -> None:
    monkeypatch.setattr(driver, "SECONDS_BETWEEN", 0.0)
    with monkeypatch.context() as without:
        without.setattr(Wire, "offer", lambda self, n_parts: None)
        expected = [texts_of(stream) for stream in streams(one_by_one)]
    assert all(len(texts) > 10 for texts in expected)
    written, write = [], os.write

    def some(file: int, data: bytes) -> int:
        written.append(len(data))
        if most == 0:
            raise BlockingIOError
        return write(file, data[:most])

    monkeypatch.setattr(wire_module.os, "write", lambda file, data: some(file, data) if b"\r\n" in data
                        else write(file, data))  # fmt: skip
    assert [texts_of(stream) for stream in streams(one_by_one)] == expected
    assert len(written) > (60 if most is None else 2)


def test_text_that_cannot_be_told_ends_that_answer_alone(one_by_one, monkeypatch) -> None:
    send = Wire.send

    def failing(self: Wire, n_parts: int, say: Callable[[], bytes]) -> bool:
        def wrong() -> bytes:
            raise ValueError("no bytes")

        return send(self, n_parts, wrong)

    with monkeypatch.context() as wrong:
        wrong.setattr(Wire, "send", failing)
        text = one_by_one.post("/v1/chat/completions", ASKED).text
    assert '"error"' in text and "no bytes" not in text
    until(lambda: one_by_one.log[-1].get("exception") == "ValueError: no bytes")  # it is written behind the answer
    assert one_by_one.post("/v1/chat/completions", ASKED).text.endswith("data: [DONE]\n\n")


def test_text_that_comes_fast_is_told_together(one_by_one, monkeypatch) -> None:
    whole = one_by_one.post("/v1/chat/completions", {**ASKED, "stream": False}).json()["choices"][0]["message"][
        "content"
    ]
    monkeypatch.setattr(driver, "SECONDS_BETWEEN", 60.0)
    texts = [text for _, text, _ in texts_of(one_by_one.post("/v1/chat/completions", ASKED).text) if text]
    assert len(texts) == 2 and "".join(texts) == whole  # the first at once, and the rest at the end


def test_what_was_held_back_is_told_before_an_error(one_by_one, monkeypatch) -> None:
    take, n_taken = Generation.take, []

    def failing(self: Generation) -> list[Any]:
        n_taken.append(1)
        if len(n_taken) > 12:
            raise ValueError("no more")
        return take(self)

    monkeypatch.setattr(driver, "SECONDS_BETWEEN", 60.0)
    monkeypatch.setattr(Generation, "take", failing)
    *_, said, error, end = one_by_one.post("/v1/chat/completions", ASKED).text.split("\n\n")
    assert json.loads(said.removeprefix("data: "))["choices"][0]["delta"]["content"]
    assert "error" in json.loads(error.removeprefix("data: ")) and not end


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files cannot be counted here")
def test_no_file_stays_open(one_by_one) -> None:
    streams(one_by_one)
    n_before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        streams(one_by_one)
    late = time.monotonic() + 5  # a connection is closed a little after its client has left
    while len(os.listdir("/proc/self/fd")) > n_before:
        assert time.monotonic() < late
        time.sleep(0.01)


def test_the_event_loop_hears_of_a_whole_answer_once(one_by_one, monkeypatch) -> None:
    put, heard = Answers.put, []
    monkeypatch.setattr(Answers, "put", lambda self, part: (heard.append(part), put(self, part)))
    answer = one_by_one.post("/v1/chat/completions", {**ASKED, "stream": False}).json()
    assert answer["usage"]["completion_tokens"] == 24 and answer["choices"][0]["message"]["content"]
    assert len(heard) == 1
