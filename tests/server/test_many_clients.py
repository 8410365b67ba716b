"""Many clients at once: whose turn it is, who has left, what is loaded, and an end in order."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import edgellm
from edgellm.server.driver import Driver
from edgellm.server.keys import Keys
from edgellm.server.problems import ApiProblem
from edgellm.server.turns import Turns
from tests.spending import once_within

from .running import running, until


def asked(text: str = "a", **more):
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **more}


def long_story(**more):
    """Some seconds of SmolLM2, which may not end it."""
    return asked("Tell a long story.", max_tokens=900, logit_bias={"2": -100}, **more)


def test_every_client_gets_what_it_would_get_alone(small, tiny_chat) -> None:
    texts = [f"{letter * (1 + 5 * i)}" for i, letter in enumerate("abcdefghijkl")]
    with edgellm.load(tiny_chat, n_threads=2) as model:
        expected = ["".join(model.chat([{"role": "user", "content": text}], temperature=0, max_tokens=8))
                    for text in texts]  # fmt: skip
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(lambda text: small.post("/v1/chat/completions", asked(text)).json(), texts * 3))
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == expected * 3


def test_turns_go_round_the_clients() -> None:
    async def go() -> list[str]:
        turns, order = Turns(1, 100), []

        async def one(client: str) -> None:
            async with turns.turn(client):
                order.append(client)
                await asyncio.sleep(0)

        async with turns.turn("first"):
            tasks = [asyncio.ensure_future(one(client)) for client in "aaaabbc"]
            await asyncio.sleep(0.01)
            assert turns.n_waiting == 7
        await asyncio.gather(*tasks)
        assert (turns.n_running, turns.n_waiting) == (0, 0)
        return order

    assert "".join(asyncio.run(go())) == "abcabaa"


def test_who_gives_up_waiting_takes_no_turn() -> None:
    async def go() -> None:
        turns = Turns(2, 2)
        async with turns.turn("a", 2):
            waiting = [asyncio.ensure_future(turns.turn(str(i)).__aenter__()) for i in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(ApiProblem) as caught:
                async with turns.turn("b"):
                    pass
            assert caught.value.status == 429 and int(caught.value.headers["Retry-After"]) >= 1
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert turns.n_waiting == 0
        async with turns.turn("c", 2):
            assert turns.n_running == 2

    asyncio.run(go())


def test_a_turn_that_came_as_its_client_left_is_given_on() -> None:
    async def go() -> None:
        turns = Turns(1, 5)

        async def one() -> None:
            async with turns.turn("a"):
                pass

        async with turns.turn("first"):
            gone, after = asyncio.ensure_future(one()), asyncio.ensure_future(one())
            await asyncio.sleep(0)
        gone.cancel()  # its turn has just come
        await asyncio.wait_for(after, 1)
        await asyncio.gather(gone, return_exceptions=True)
        assert (turns.n_running, turns.n_waiting) == (0, 0)

    asyncio.run(go())


def test_too_many_requests_are_told_to_come_back(smollm2) -> None:
    with running({"tiny": smollm2}, parallel=1, queue=1) as server:
        long = long_story(stream=True)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=long, timeout=60) as first:
            first_lines = first.iter_lines()
            next(first_lines)
            pool = ThreadPoolExecutor(1)
            second = pool.submit(server.post, "/v1/chat/completions", asked())
            until(lambda: server.status()["queue_length"] == 1)
            third = server.post("/v1/chat/completions", asked())
            assert third.status_code == 429
            assert int(third.headers["retry-after"]) >= 1
            assert third.json()["error"]["type"] == "rate_limit_error"
        assert second.result(20).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("interface", ["/v1/chat/completions", "/api/chat"])
def test_a_client_that_leaves_is_cancelled_at_once(smol, stream, interface) -> None:
    body = long_story(stream=stream)
    if interface == "/api/chat":
        body = {"messages": body["messages"], "stream": stream, "options": {"num_predict": 900}}
    turns = smol.application.server.turns

    def leave() -> float:
        """Seconds until the answer has ended."""
        with httpx.Client() as client:
            request = client.build_request("POST", smol.url + interface, json={**body, "model": "smollm2-135m"},
                                           timeout=60 if stream else 0.1)  # fmt: skip
            if stream:
                answer = client.send(request, stream=True)
                next(answer.iter_lines())
                answer.close()
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.send(request)
        return until(lambda: turns.n_running == 0)

    once_within(0.1, leave)


def test_a_request_that_takes_too_long_is_ended(tiny_chat) -> None:
    with running({"tiny": tiny_chat}, timeout=0.3) as server:
        long = asked(max_tokens=1000, n=16, logit_bias={"2": -100})
        whole = server.post("/v1/chat/completions", long)
        assert whole.status_code == 504 and whole.json()["error"]["code"] == "timeout"
        streamed = server.post("/v1/chat/completions", {**long, "stream": True}).text
        assert "0.3 seconds" in json.loads(streamed.strip().splitlines()[-1].removeprefix("data: "))["error"]["message"]
        until(lambda: server.status()["answers_running"] == 0)


def test_progress_of_a_prompt_and_signs_of_life(tiny_chat) -> None:
    with running({"tiny": tiny_chat}, ping=0.1, runtime=edgellm.RuntimeConfig(n_batch=16)) as server:
        long = asked("ab " * 200, stream=True, return_progress=True)
        lines = server.post("/v1/chat/completions", long).text.splitlines()
        parts = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        told = [part["prompt_progress"] for part in parts if "prompt_progress" in part]
        assert len(told) > 3
        done = [one["processed"] for one in told]
        assert done == sorted(set(done)) and done[-1] <= told[0]["total"]


def test_signs_of_life_while_a_client_waits(smollm2) -> None:
    with running({"tiny": smollm2}, ping=0.1, parallel=1) as server:
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=long_story(stream=True), timeout=60) as first:
            first_lines = first.iter_lines()
            next(first_lines)  # it has the only turn
            with httpx.stream("POST", url, json=asked(stream=True), timeout=60) as second:
                lines = second.iter_lines()
                assert next(lines) == ": ping"
                first.close()
                assert list(lines)[-2] == "data: [DONE]"


def test_models_come_and_go(tiny_chat) -> None:
    size = tiny_chat.stat().st_size
    with running({"a": tiny_chat, "b": tiny_chat, "c": tiny_chat}, memory_bytes=1 << 20) as server:
        for name in "abca":
            answer = server.post("/v1/chat/completions", asked() | {"model": name})
            assert answer.status_code == 200 and answer.json()["model"] == name
            assert [model["name"] for model in server.status()["models"]] == [name]
    assert size
    with running({"a": tiny_chat, "b": tiny_chat}, idle=0.2) as server:
        assert server.post("/v1/chat/completions", asked() | {"model": "b"}).status_code == 200
        until(lambda: server.status()["models"] == [])
        assert server.post("/v1/chat/completions", asked() | {"model": "b"}).status_code == 200
        assert server.get("/v1/models").json()["data"][0]["id"] == "a"
        kept = server.post("/api/generate", {"model": "a", "keep_alive": -1})
        assert kept.status_code == 200
        time.sleep(1.5)
        assert [model["name"] for model in server.status()["models"]] == ["a"]
        assert server.post("/api/generate", {"model": "a", "keep_alive": 0}).json()["done_reason"] == "unload"
        until(lambda: server.status()["models"] == [])


def test_a_damaged_model_is_told_and_the_others_go_on(tiny_chat, tmp_path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_chat.read_bytes()[:3000])
    with running({"tiny": tiny_chat, "broken": broken}) as server:
        answer = server.post("/v1/chat/completions", asked() | {"model": "broken"})
        assert answer.status_code == 500
        message = answer.json()["error"]["message"]
        assert "broken" in message and str(tmp_path) not in message
        assert server.post("/v1/chat/completions", asked()).status_code == 200


def test_what_is_being_written_ends_before_the_server_does(tiny_chat) -> None:
    with running({"tiny": tiny_chat}, shutdown_timeout=5.0) as server:
        long = asked(max_tokens=300, stream=True, logit_bias={"2": -100})
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=long, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.stop()
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"


STOPPED = [
    ("/v1/chat/completions", "data: ", lambda last: last["error"]["message"]),
    ("/v1/responses", "data: ", lambda last: last["response"]["error"]["message"]),
    ("/v1/messages", "data: ", lambda last: last["error"]["message"]),
    ("/api/chat", "", lambda last: last["error"]),
]


@pytest.mark.parametrize(("path", "before", "told"), STOPPED)
def test_answers_that_take_too_long_hear_that_the_server_stops(tiny_chat, path, before, told, monkeypatch) -> None:
    """Streams and whole answers, and those that wait for their turn."""
    monkeypatch.setattr(Driver, "start", lambda *_: None)  # so that they take for ever
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    if path == "/v1/responses":
        body = {"model": "tiny", "input": "a"}
    elif path == "/v1/messages":
        body["max_tokens"] = 5
    with (
        running({"tiny": tiny_chat}, shutdown_timeout=0.5, parallel=2) as server,
        ThreadPoolExecutor(3) as pool,
        httpx.stream("POST", server.url + path, json={**body, "stream": True}, timeout=60) as answer,
    ):
        whole = [pool.submit(server.post, path, {**body, "stream": False}) for _ in range(2)]
        until(lambda: server.status()["queue_length"] == 1)
        server.stop()
        last = [line for line in answer.iter_lines() if line.startswith(before + "{")][-1]
        assert told(json.loads(last.removeprefix(before))) == "the server is stopping"
        for one in whole:
            assert one.result().status_code == 503
            assert "the server is stopping" in json.dumps(one.result().json())
    assert not [record for record in server.log if "message" in record or "exception" in record]


def test_metrics_and_status(tiny_chat) -> None:
    with running({"tiny": tiny_chat}, Keys.of(["some-key-of-mine"])) as server:
        headers = {"Authorization": "Bearer some-key-of-mine"}
        for _ in range(2):
            server.post("/v1/chat/completions", asked("a" * 200), headers=headers)
        server.get("/made/up/path")
        text = server.get("/metrics", headers=headers).text
        numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert numbers['edgellm_requests_total{route="/v1/chat/completions",status="200"}'] == "2"
        assert not any("made" in name for name in numbers)
        assert int(numbers["edgellm_prompt_tokens_cached_total"]) > 100
        assert numbers["edgellm_time_to_first_token_seconds_count"] == "2"
        assert numbers["edgellm_queue_length"] == "0"
        assert float(numbers["edgellm_memory_used_bytes"]) > 1e7


def test_a_connection_that_is_kept_open_answers_at_once(small) -> None:
    """Where small parts wait for the client to confirm those before, each answer takes 40 ms or more."""
    with httpx.Client(base_url=small.url) as client:
        seconds = []
        for _ in range(20):
            started = time.perf_counter()
            assert client.get("/health").status_code == 200
            seconds.append(time.perf_counter() - started)
    assert min(seconds[2:]) < 0.025
