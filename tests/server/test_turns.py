"""Whose turn it is, whoever leaves and whenever."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.server.problems import ApiProblem
from edgellm.server.turns import Turns


def test_as_many_at_a_time_as_there_are_turns() -> None:
    asyncio.run(as_many_at_a_time())


async def as_many_at_a_time() -> None:
    turns = Turns(2, 1)
    async with turns.turn("a"), turns.turn("a"):
        with pytest.raises(ApiProblem, match="3 answers"):
            await turns.turn("b", 3).__aenter__()
        waits = asyncio.ensure_future(turns.turn("b").__aenter__())
        await asyncio.sleep(0)
        assert turns.n_running == 2 and turns.n_waiting == 1 and not waits.done()
        with pytest.raises(ApiProblem, match="come back later"):
            await turns.turn("c").__aenter__()
    await waits
    assert turns.n_running == 1 and turns.n_waiting == 0


def test_one_who_leaves_just_before_the_turn_comes_takes_none() -> None:
    asyncio.run(leaves_just_before())


async def leaves_just_before() -> None:
    turns = Turns(1, 2)

    async def work() -> None:
        async with turns.turn("b"):
            pass

    async with turns.turn("a"):
        leaves, stays = asyncio.ensure_future(work()), asyncio.ensure_future(work())
        await asyncio.sleep(0)
        leaves.cancel()  # hears of it after this block has ended
    await stays
    assert leaves.cancelled() and turns.n_running == turns.n_waiting == 0


@given(st.data())
def test_nothing_is_left_over(data: st.DataObject) -> None:
    works = st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 4), st.integers(0, 8))
    asked = data.draw(st.lists(works, max_size=12))
    turns = Turns(3, 8)
    most = 0

    async def work(client: str, n: int, ticks: int) -> None:
        nonlocal most
        async with turns.turn(client, n):
            most = max(most, turns.n_running)
            for _ in range(ticks):
                await asyncio.sleep(0)

    async def all_of_them() -> None:
        tasks = [(asyncio.ensure_future(work(client, n, ticks)), leaves) for client, n, ticks, leaves in asked]
        for tick in range(8):
            for task, leaves in tasks:
                if leaves == tick:
                    task.cancel()
            await asyncio.sleep(0)
        for task, _ in tasks:
            with contextlib.suppress(asyncio.CancelledError, ApiProblem):
                await task

    asyncio.run(all_of_them())
    assert turns.n_running == turns.n_waiting == 0 and most <= 3
