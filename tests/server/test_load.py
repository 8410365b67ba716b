"""Some seconds of what `tools/load_server.py` does for as long as one likes."""

from __future__ import annotations

import asyncio
import os

import pytest

from tools.load_server import GROWTH, Clients, growth

from .running import running

SECONDS = float(os.environ.get("EDGELLM_LOAD_SECONDS", "4"))  # CI takes two minutes


def test_load_at_the_limit_leaves_nothing_and_gives_no_wrong_answer(tiny_chat) -> None:
    with running({"tiny": tiny_chat}, parallel=3, queue=4) as server:
        load = asyncio.run(Clients(server.url, "tiny", 12, 12, seed=1).run(SECONDS, 24))
        assert load.wrong == []
        kinds = {"whole", "streamed", "leaves", "gives_up", "malformed", "slow", "told to come back"}
        assert kinds <= set(load.counts)
        if SECONDS >= 60:
            assert growth(load.memory) < GROWTH


@pytest.mark.parametrize(("memory", "expected"), [([1.0] * 40, 0.0), ([1.0] * 20 + [1.1] * 20, 0.1)])
def test_growth(memory, expected) -> None:
    assert growth(memory) == pytest.approx(expected)
