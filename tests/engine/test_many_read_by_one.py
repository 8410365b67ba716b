"""One thread that reads many answers: `Generation.advance` and `take`."""

from __future__ import annotations

import threading

import pytest

from edgellm.engine import Generation
from edgellm.errors import UsageError

PROMPTS = [[3 + i] * (5 + 60 * i) for i in range(5)]


def read_all(generations: list[Generation]) -> list[str]:
    texts = [""] * len(generations)
    while any(generation.finish_reason is None for generation in generations):
        Generation.advance(generations)
        for index, generation in enumerate(generations):
            texts[index] += "".join(piece.text for piece in generation.take())
    return texts


def test_they_say_what_each_says_alone(model) -> None:
    settings = {"temperature": 1.0, "seed": 3, "max_tokens": 20, "logprobs": 1}
    alone = [model.generate(prompt, **settings) for prompt in PROMPTS]
    expected = ["".join(generation) for generation in alone]
    together = [model.generate(prompt, **settings) for prompt in PROMPTS]
    assert read_all(together) == expected
    assert [one.content for one in together] == expected
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.logprobs for one in together] == [one.logprobs for one in alone]
    assert [one.finish_reason for one in together] == [one.finish_reason for one in alone]


def test_one_that_arrives_while_others_go_on_holds_nobody_up(model) -> None:
    first = model.generate(PROMPTS[0], max_tokens=60, temperature=0, logit_bias={2: -100})
    while not first.take():
        Generation.advance([first])
    late = model.generate(PROMPTS[4] * 3, max_tokens=2, temperature=0)
    n_before = len(first.token_ids)
    while late.stats.n_generated_tokens == 0:
        Generation.advance([first, late])
        first.take()
    assert len(first.token_ids) > n_before  # it was written on while the other's prompt was read
    read_all([first, late])
    assert len(first.token_ids) == 60


def test_one_that_is_cancelled_ends_and_the_others_go_on(model) -> None:
    one, other = (model.generate(prompt, max_tokens=30, temperature=0, logit_bias={2: -100}) for prompt in PROMPTS[:2])
    Generation.advance([one, other])
    one.cancel()
    Generation.advance([one, other])  # it is ready: there is its end to be taken
    assert one.take() == [] and one.finish_reason == "cancelled"
    read_all([one, other])
    assert other.finish_reason == "length"
    Generation.advance([one, other])  # nothing is left to be done
    assert other.take() == []


def test_nothing_is_waited_for(model) -> None:
    generation = model.generate(PROMPTS[0], max_tokens=3, temperature=0)
    assert generation.take() == []  # it has not begun
    assert generation.finish_reason is None


def test_an_error_ends_its_answer(model) -> None:
    generation = model.generate(PROMPTS[0], max_tokens=3, temperature=0)
    Generation.advance([generation])
    model.close()
    with pytest.raises(UsageError, match="closed"):
        while True:
            generation.take()
            Generation.advance([generation])


def test_two_threads_cannot_take_of_one(model) -> None:
    generation = model.generate(PROMPTS[0], max_tokens=3, temperature=0)
    assert generation._reading.acquire(blocking=False)
    try:
        with pytest.raises(UsageError, match="another thread"):
            generation.take()
    finally:
        generation._reading.release()
    thread = threading.Thread(target=read_all, args=([generation],))
    thread.start()
    thread.join(60)
    assert generation.finish_reason in ("length", "stop")


def test_those_that_lost_their_room_to_one_that_nobody_waits_for_go_on(model) -> None:
    settings = {"temperature": 0, "max_tokens": 12, "logit_bias": {2: -100}}
    alone = [model.generate(prompt, **settings) for prompt in PROMPTS[:3]]
    expected = ["".join(generation) for generation in alone]
    generations = [model.generate(prompt, **settings) for prompt in PROMPTS[:3]]
    started = [next(generation) for generation in generations]
    for generation in generations[:2]:
        model._scheduler._preempt(generation._answer)
    texts = read_all(generations[:2])
    assert [begun + text for begun, text in zip(started, texts, strict=False)] == expected[:2]
    assert started[2] + "".join(generations[2]) == expected[2]
