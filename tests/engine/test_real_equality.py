"""Real models: alone, cached, batched, speculated, resumed and with little room, the tokens are the same."""

from __future__ import annotations

from functools import partial

import pytest

import edgellm
from edgellm.engine import disk_cache

CODE = '''def area(width, height):
    """The area of a rectangle."""
    return width * height


def perimeter(width, height):
    """The perimeter of a rectangle."""
    return 2 * (width + height)
'''
TEXTS = [
    f"{CODE}\n\n# The same file again:\n{CODE[:60]}",
    "The river rises in the hills, and for the first miles",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,",
]
LONG = f"{CODE * 13}\n\nclass Rectangle:\n"  # above 512 tokens
ASKED = {"max_tokens": 16, "temperature": 0.0}


def answer(model, text, **params):
    generation = model.generate(text, **(ASKED | params))
    list(generation)
    return generation


@pytest.fixture(scope="module", params=["smollm2", "gemma3", pytest.param("smollm2 q4_0", marks=pytest.mark.thorough)])
def load(request):
    """Loads a real model; one of them with a cache whose blocks are stored otherwise once they are full."""
    name, _, kv_type = request.param.partition(" ")
    path = request.getfixturevalue(name)
    return partial(edgellm.load, path, n_ctx=2048, n_threads=1, kv_type=kv_type or "f16")


@pytest.fixture(scope="module")
def expected(load):
    """Alone, each in an empty cache, nothing guessed: greedy, and sampled with a seed."""
    found = []
    with load(speculate="off", disk_bytes=0) as model:
        for text in (*TEXTS, LONG):
            for params in ({}, {"temperature": 0.8, "seed": 5}):
                model._scheduler.prefixes.clear()
                found.append(answer(model, text, **params).token_ids)
    return found


def all_answers(model) -> list[list[int]]:
    return [
        answer(model, text, **params).token_ids
        for text in (*TEXTS, LONG)
        for params in ({}, {"temperature": 0.8, "seed": 5})
    ]


def test_guessed(load, expected) -> None:
    with load(speculate="always", disk_bytes=0) as model:
        assert all_answers(model) == expected
        copied = answer(model, TEXTS[0])
        assert copied.stats.n_accepted_tokens > 0


def test_guessed_by_its_own_first_layers(load, expected) -> None:
    with load(speculate="always", draft_layers=6, disk_bytes=0) as model:
        for index in (1, 2):
            assert answer(model, TEXTS[index]).token_ids == expected[2 * index]


def test_cached_and_with_automatic_guesses(load, expected) -> None:
    with load(disk_bytes=0) as model:
        assert all_answers(model) == expected
        assert all_answers(model) == expected  # from what the first round left
        assert answer(model, LONG).stats.n_reused_tokens > 500


def test_batched(load, expected) -> None:
    with load(disk_bytes=0) as model:
        answers = model.batch([*TEXTS, LONG], n_parallel=4, **ASKED)
        assert [one.token_ids for one in answers] == expected[::2]


def test_resumed_from_a_session_and_from_the_disk(load, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(disk_cache, "prefixes_folder", lambda: tmp_path / "prefixes")
    with load(disk_bytes=1 << 30) as model:
        assert answer(model, LONG).token_ids == expected[-2]
        generation = answer(model, TEXTS[0], max_tokens=8)
        n_saved = model.save_session(tmp_path / "session", generation)
    with load(disk_bytes=1 << 30) as model:
        again = answer(model, LONG)
        assert again.token_ids == expected[-2] and again.stats.n_reused_tokens >= 512
        assert len(model.load_session(tmp_path / "session").token_ids) == n_saved
        ids = generation.text_ids
        rest = answer(model, ids, max_tokens=8)
        assert generation.token_ids + rest.token_ids == expected[0] and rest.stats.n_reused_tokens >= n_saved - 1
