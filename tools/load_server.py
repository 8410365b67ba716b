"""Load on a running server: ordinary chats, clients that leave, malformed bodies and slow readers, all at once.

    python tools/load_server.py http://127.0.0.1:8080 --model smollm2-135m --seconds 3600 --clients 24

Every answer that comes to its end is compared with the one that the same question got alone. At the end nothing may be
left: no answer being written, no request waiting, and no more memory than after the first tenth of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

WORDS = [
    "river",
    "stone",
    "light",
    "paper",
    "house",
    "green",
    "winter",
    "apple",
    "cloud",
    "horse",
    "silver",
    "garden",
    "window",
    "bridge",
]
MALFORMED = (b"", b"{", b"[1]", b'{"messages": 5}', b"\xff", b'{"messages": [], "colour": 1}', b"[" * 5000)
GRACE_SECONDS = 5.0  # seconds in which all must be over at the end
GROWTH = 0.03  # of resident memory, that is taken for none


@dataclass
class Load:
    """What happened. wrong: in words. memory: bytes in use, in the order of time."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


class Clients:
    """Some clients of one server, each doing one thing after the other."""

    def __init__(self, url: str, model: str, n_questions: int, max_tokens: int, seed: int) -> None:
        self.url, self.model, self.max_tokens = url.rstrip("/"), model, max_tokens
        self.load = Load()
        self._random = random.Random(seed)
        self._questions = [" ".join(self._random.choices(WORDS, k=3 + 5 * (i % 9))) for i in range(n_questions)]
        self._expected: dict[str, str] = {}

    @property
    def _chats(self) -> str:
        return f"{self.url}/v1/chat/completions"

    def _body(self, question: str, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {"model": self.model, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0, **more}

    async def run(self, seconds: float, n_clients: int) -> Load:
        """Go on for so long; then see what is left."""
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
            for question in self._questions:
                answer = await client.post(self._chats, json=self._body(question))
                self._expected[question] = answer.raise_for_status().json()["choices"][0]["message"]["content"]
            ends = time.monotonic() + seconds
            watch = asyncio.ensure_future(self._watch(client, seconds / 40))
            await asyncio.gather(*(self._one(client, ends) for _ in range(n_clients)))
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._is_idle(client)
        return self.load

    async def _one(self, client: httpx.AsyncClient, ends: float) -> None:
        works = [self._whole, self._streamed, self._streamed, self._leaves, self._gives_up, self._malformed, self._slow]
        while time.monotonic() < ends:
            work = self._random.choice(works)
            try:
                await work(client, self._random.choice(self._questions))
                self.load.counts[work.__name__.strip("_")] += 1
            except httpx.HTTPError as error:
                self.load.wrong.append(f"{work.__name__}: {type(error).__name__} {error}")

    def _check(self, question: str, found: str) -> None:
        if found != self._expected[question]:
            self.load.wrong.append(f"{question!r}: {found!r} instead of {self._expected[question]!r}")

    def _is_busy(self, answer: httpx.Response) -> bool:
        """Whether the client was told to come back later; what else is no answer is wrong."""
        if answer.status_code == 429:
            self.load.counts["told to come back"] += 1
        elif answer.status_code != 200:
            self.load.wrong.append(f"status {answer.status_code}")
        return answer.status_code != 200

    async def _whole(self, client: httpx.AsyncClient, question: str) -> None:
        answer = await client.post(self._chats, json=self._body(question))
        if self._is_busy(answer):
            await asyncio.sleep(0.05)
        else:
            self._check(question, answer.json()["choices"][0]["message"]["content"])

    async def _streamed(self, client: httpx.AsyncClient, question: str, pause: float = 0.0) -> None:
        said, is_done = "", False
        async with client.stream("POST", self._chats, json=self._body(question, stream=True)) as answer:
            if self._is_busy(answer):
                return
            async for line in answer.aiter_lines():
                if pause:
                    await asyncio.sleep(pause)
                if line == "data: [DONE]":
                    is_done = True
                elif line.startswith("data: "):
                    for choice in json.loads(line[6:]).get("choices", ()):
                        said += choice["delta"].get("content") or ""
        if not is_done:
            self.load.wrong.append(f"a stream without an end, after {said!r}")
        else:
            self._check(question, said)

    async def _slow(self, client: httpx.AsyncClient, question: str) -> None:
        await self._streamed(client, question, pause=0.02)

    async def _leaves(self, client: httpx.AsyncClient, question: str) -> None:
        """After some parts of a stream."""
        n_parts = self._random.randrange(4)
        async with client.stream("POST", self._chats, json=self._body(question, stream=True)) as answer:
            async for _ in answer.aiter_lines():
                n_parts -= 1
                if n_parts < 0:
                    break

    async def _gives_up(self, client: httpx.AsyncClient, question: str) -> None:
        """While the answer is being written."""
        try:
            seconds = self._random.uniform(0.001, 0.05)
            await client.post(self._chats, json=self._body(question), timeout=seconds)
        except httpx.TimeoutException:
            return

    async def _malformed(self, client: httpx.AsyncClient, question: str) -> None:
        body = self._random.choice(MALFORMED)
        answer = await client.post(self._chats, content=body)
        if not 400 <= answer.status_code < 500:
            self.load.wrong.append(f"status {answer.status_code} for {body[:40]!r}")

    async def _watch(self, client: httpx.AsyncClient, seconds: float) -> None:
        while True:
            self.load.memory.append((await self._status(client))["memory_used_bytes"])
            await asyncio.sleep(max(seconds, 0.05))

    async def _is_idle(self, client: httpx.AsyncClient) -> None:
        ends = time.monotonic() + GRACE_SECONDS
        while True:
            status = await self._status(client)
            if status["answers_running"] == status["queue_length"] == 0 and status["requests_open"] <= 1:
                return
            if time.monotonic() > ends:
                self.load.wrong.append(f"left over: {status}")
                return
            await asyncio.sleep(0.02)

    async def _status(self, client: httpx.AsyncClient) -> dict[str, Any]:
        found: dict[str, Any] = (await client.get(f"{self.url}/status")).json()
        return found


def growth(memory: list[float]) -> float:
    """Of resident memory, from after the first tenth to the end, as a share."""
    begin = memory[len(memory) // 10 :][:3]
    end = memory[-3:]
    return sum(end) / len(end) / (sum(begin) / len(begin)) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    load = asyncio.run(Clients(args.url, args.model, 20, args.tokens, args.seed).run(args.seconds, args.clients))
    for name, n in sorted(load.counts.items()):
        print(f"{n:8}  {name}")
    for line in load.wrong[:20]:
        print(f"wrong: {line}")
    grown = growth(load.memory)
    print(f"resident memory grew by {100 * grown:.1f} %")
    sys.exit(bool(load.wrong) or grown > GROWTH)


if __name__ == "__main__":
    main()
