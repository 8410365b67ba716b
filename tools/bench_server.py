"""Concurrent chats over HTTP: total tokens per second, and the time to the first token.

    python tools/bench_server.py URL [URL...] --model NAME [--prompt 256] [--tokens 64] [--clients 1 4 16] [--rounds 3]

Any server of OpenAI's interface can stand behind a URL: `edgellm serve`, llama.cpp's `llama-server`. Give several to
compare them: they are asked in turn, round by round, and the median counts. Every chat begins with other words, so no
prompt is in a cache. `edgellm serve` tells how long the engine took for the prompt; the rest is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wise",
    "owls",
    "watch",
    "from",
    "an",
    "old",
    "oak",
    "tree",
]
FRESH = count(time.time_ns() % 1_000_000_000)


@dataclass
class Chat:
    """One chat: seconds to the first text, its tokens, and how long the engine read its prompt, if that is told."""

    first: float
    n_prompt: int
    n_tokens: int
    engine_first: float | None


@dataclass
class Measured:
    """Of one server: tokens per second of each round, and all chats."""

    speeds: list[float] = field(default_factory=list)
    chats: list[Chat] = field(default_factory=list)

    def __str__(self) -> str:
        firsts = sorted(1000 * one.first for one in self.chats)
        late = firsts[int(0.95 * (len(firsts) - 1))]
        text = f"{statistics.median(self.speeds):8.1f} tok/s   first token {statistics.median(firsts):7.1f} ms"
        text += f", 95 % within {late:7.1f} ms"
        added = [1000 * (one.first - one.engine_first) for one in self.chats if one.engine_first is not None]
        return f"{text}   {statistics.median(added):5.1f} ms of it around the engine" if added else text


async def chat(
    client: httpx.AsyncClient, url: str, model: str, n_prompt: int, n_tokens: int, more: dict[str, Any]
) -> Chat:
    words = [f"{next(FRESH)}", *(WORDS[i % len(WORDS)] for i in range(n_prompt - 40))]
    body = {"model": model, "messages": [{"role": "user", "content": " ".join(words)}], "max_tokens": n_tokens,
            "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **more}  # fmt: skip
    first = 0.0
    usage: dict[str, int] = {}
    timings: dict[str, float] = {}
    started = time.perf_counter()
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{url}: status {answer.status_code}: {(await answer.aread()).decode()[:300]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            part: dict[str, Any] = json.loads(line[6:])
            if not first and any(choice["delta"].get("content") for choice in part["choices"]):
                first = time.perf_counter() - started
            usage, timings = part.get("usage") or usage, part.get("timings") or timings
    engine = timings["prompt_ms"] / 1000 if timings else None
    return Chat(first, usage["prompt_tokens"], usage["completion_tokens"], engine)


async def measure(
    url: str, model: str, n_prompt: int, n_tokens: int, n_clients: int, more: dict[str, Any]
) -> tuple[float, list[Chat]]:
    """Tokens per second of all together, prompts and answers, and each chat. more: fields of the requests."""
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        started = time.perf_counter()
        chats = await asyncio.gather(*(chat(client, url, model, n_prompt, n_tokens, more) for _ in range(n_clients)))
        seconds = time.perf_counter() - started
    return sum(one.n_prompt + one.n_tokens for one in chats) / seconds, chats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--never", type=int, nargs="*", default=[], help="tokens that end a text, which must not come")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    more = {"logit_bias": {str(token): -100 for token in args.never}}
    urls = [url.rstrip("/") for url in args.urls]
    for n_clients in args.clients:
        found = {url: Measured() for url in urls}
        for _ in range(args.rounds):
            for url, measured in found.items():
                speed, chats = asyncio.run(measure(url, args.model, args.prompt, args.tokens, n_clients, more))
                measured.speeds.append(speed)
                measured.chats += chats
        for url, measured in found.items():
            print(f"{n_clients:3} clients   {url}   {measured}", flush=True)


if __name__ == "__main__":
    main()
