"""What the server itself adds to a chat: over HTTP, beside `model.chat` of the same file in this process.

    edgellm serve MODEL.gguf --threads 2 --log off &
    python tools/bench_server_alone.py http://127.0.0.1:8080 MODEL.gguf [--threads 2] [--words 20 216] [--tokens 65]
                                       [--rounds 25] [--never 2 0] [--fresh]

Both answer the same questions in turns, so that what else the machine does hits both. The client is a plain socket that
is kept open (--fresh: a new connection for each chat) and read as it comes. Told are medians of the differences: to the
first text, to the end of an answer of one token, and from the first text to the last of a long one. Every question
begins with another word, so no prompt is in a cache; those of 512 tokens and more would be in that on the disk.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import edgellm

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "near", "an", "old", "river", "bank"]
FRESH = count(time.time_ns() % 1_000_000_000)
END = b"\r\n0\r\n\r\n"  # of a body in chunks, which no head ends with


def question(n_words: int) -> list[dict[str, str]]:
    number = next(FRESH)
    words = [str(number), *(WORDS[(i + number) % len(WORDS)] for i in range(n_words))]
    return [{"role": "user", "content": " ".join(words)}]


@dataclass
class Times:
    """Seconds from the question to the first text, and to the end."""

    first: float
    end: float


class Served:
    """Chats over HTTP."""

    def __init__(self, url: str, model: str, more: dict[str, Any], is_fresh: bool) -> None:
        parts = urlsplit(url)
        self._place = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._model, self._more, self._is_fresh = model, more, is_fresh
        self._socket: socket.socket | None = None

    def chat(self, messages: list[dict[str, str]], n_tokens: int) -> Times:
        asked = {"model": self._model, "messages": messages, "max_tokens": n_tokens, "stream": True, **self._more}
        body = json.dumps(asked).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        started = time.perf_counter()
        if self._socket is None:
            self._socket = socket.create_connection(self._place)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(head.encode() + body)
        got, first = b"", 0.0
        while not got.endswith(END):
            data = self._socket.recv(1 << 16)
            if not data:
                raise SystemExit(f"the server hung up: {got[-300:]!r}")
            got += data
            # The first piece has a role and no text.
            if not first and got.count(b'"content":"') > got.count(b'"content":""'):
                first = time.perf_counter() - started
        end = time.perf_counter() - started
        if not got.startswith(b"HTTP/1.1 200") or not first:
            raise SystemExit(f"expected a stream of text, found {got[:300]!r}")
        if self._is_fresh:
            self._socket.close()
            self._socket = None
        return Times(first, end)


class Direct:
    """The same chats in this process."""

    def __init__(self, model: edgellm.Model, sampling: dict[str, Any]) -> None:
        self._model, self._sampling = model, sampling

    def chat(self, messages: list[dict[str, str]], n_tokens: int) -> Times:
        first = 0.0
        started = time.perf_counter()
        for _ in self._model.chat(messages, max_tokens=n_tokens, **self._sampling):
            first = first or time.perf_counter() - started
        return Times(first, time.perf_counter() - started)


def measure(ways: tuple[Direct, Served], n_words: int, n_tokens: int, n_rounds: int) -> str:
    """What both take, in words."""
    one: list[tuple[Times, Times]] = []
    long: list[tuple[Times, Times]] = []
    for _ in range(n_rounds):
        for found, n in ((one, 1), (long, n_tokens)):
            asked = question(n_words)
            direct, served = (way.chat(asked, n) for way in ways)
            found.append((direct, served))
    first = statistics.median(served.first - direct.first for direct, served in one + long)
    end = statistics.median(served.end - direct.end for direct, served in one)
    usual = statistics.median(direct.first for direct, _ in one + long)
    spent = [[pair[i].end - pair[i].first for pair in long] for i in (0, 1)]
    added = statistics.median(served / direct - 1 for direct, served in zip(*spent, strict=True))
    return (
        f"{n_words:4} words   first text {1000 * usual:7.1f} ms + {1000 * first:.2f} ms   one token in all "
        f"+ {1000 * end:.2f} ms   each further token {1000 * statistics.median(spent[0]) / (n_tokens - 1):6.2f} ms "
        f"{100 * added:+.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--words", type=int, nargs="+", default=[20, 216])
    parser.add_argument("--tokens", type=int, default=65)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--never", type=int, nargs="*", default=[], help="tokens that end a text, which must not come")
    parser.add_argument("--fresh", action="store_true", help="a new connection for each chat")
    args = parser.parse_args()
    bias = dict.fromkeys(args.never, -100.0)
    model = edgellm.load(args.model, n_threads=args.threads)
    direct = Direct(model, {"temperature": 0, "logit_bias": bias})
    more = {"temperature": 0, "logit_bias": {str(token): value for token, value in bias.items()}}
    served = Served(args.url, args.model.stem, more, args.fresh)
    for way in (direct, served):
        for _ in range(3):
            way.chat(question(20), 8)
    for n_words in args.words:
        print(measure((direct, served), n_words, args.tokens, args.rounds), flush=True)


if __name__ == "__main__":
    main()
