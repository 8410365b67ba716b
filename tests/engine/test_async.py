"""Answers for asyncio: the loop goes on meanwhile, and who stops waiting ends them."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from edgellm.errors import UsageError
from tests.engine.test_generation import PROMPT, generated, holds_nothing

OFTEN = {"temperature": 0.0, "max_tokens": 20}


def test_pieces_and_all_of_it(model) -> None:
    expected = model.generate(PROMPT, **OFTEN).text

    async def run() -> None:
        answer = model.generate_async(PROMPT, **OFTEN)
        with pytest.raises(UsageError, match="has not begun"):
            answer.generation  # noqa: B018
        assert "".join([piece async for piece in answer]) == expected
        assert answer.generation.finish_reason == "length" and [piece async for piece in answer] == []
        whole = await model.generate_async(PROMPT, **OFTEN)
        assert whole.text == expected and whole.stats.n_generated_tokens == 20

    asyncio.run(run())


def test_several_at_once_while_the_loop_goes_on(model) -> None:
    prompts = [PROMPT[k:] for k in range(6)]
    expected = [generated(model, prompt) for prompt in prompts]
    beats = 0
    has_gone_on = threading.Event()

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            if beats > 3:
                has_gone_on.set()
            await asyncio.sleep(0.001)

    def until_it_has(ids, logits, context) -> None:
        has_gone_on.wait(0.1)  # however quick answers are: no token is chosen before, unless the loop stands still

    steps = {"samplers": [until_it_has, "temperature"]}

    async def run() -> None:
        heart = asyncio.create_task(beat())
        answers = await asyncio.gather(*[model.generate_async(prompt, **OFTEN, **steps) for prompt in prompts])
        heart.cancel()
        assert [answer.token_ids for answer in answers] == expected

    asyncio.run(run())
    assert beats > 3


@pytest.mark.parametrize("waiting", [True, False])
def test_a_cancelled_task_ends_its_answer(model, waiting: bool) -> None:
    is_begun = threading.Event()

    def slowly(ids, logits, context) -> None:
        is_begun.set()
        time.sleep(0.01)

    slow = {"samplers": [slowly, "temperature"], "temperature": 1.0, "max_tokens": 900}

    async def whole() -> None:
        await model.generate_async(PROMPT, **slow)

    async def stream() -> None:
        async for _ in model.generate_async(PROMPT, **slow):
            pass

    async def run() -> None:
        task = asyncio.create_task(whole() if waiting else stream())
        while not is_begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    deadline = time.monotonic() + 20
    while not holds_nothing(model) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds_nothing(model)


def test_a_block_ends_its_answer(model) -> None:
    async def run() -> None:
        async with model.generate_async(PROMPT, temperature=0.0, max_tokens=900) as answer:
            async for _ in answer:
                break
        assert answer.generation.finish_reason == "cancelled"
        assert await model.generate_async(PROMPT, **OFTEN)

    asyncio.run(run())


def test_cancelled_before_it_begins_and_by_another_thread(model) -> None:
    async def run() -> None:
        answer = model.generate_async(PROMPT, **OFTEN)
        answer.cancel()
        assert [piece async for piece in answer] == [] and answer.generation.finish_reason == "cancelled"
        other = model.generate_async(PROMPT, temperature=0.0, max_tokens=900)
        await anext_of(other)
        await asyncio.to_thread(other.cancel)
        async for _ in other:
            pass
        assert other.generation.finish_reason == "cancelled"

    asyncio.run(run())


async def anext_of(answer) -> str:
    return await answer.__anext__()


def test_errors_come_where_they_are_waited_for(model) -> None:
    async def run() -> None:
        with pytest.raises(UsageError, match="top_k"):
            await model.generate_async(PROMPT, top_k=-1)
        with pytest.raises(UsageError, match="n gives several answers"):
            await model.generate_async(PROMPT, n=2)
        with pytest.raises(UsageError, match="top_k"):
            async for _ in model.generate_async(PROMPT, top_k=-1):
                pass

    asyncio.run(run())
