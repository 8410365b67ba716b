"""Several threads, several models, and models that come and go."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import time

import psutil
import pytest

import edgellm
from edgellm.engine.generation import Generation
from edgellm.engine.sampling import Sampler
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import UsageError
from tests.arch import tiny

from .test_generation import PROMPT, generated

KEPT_BYTES = 20e6  # that twenty models may leave behind; one holds more


def in_threads(works) -> list:
    """The results of all works, each in a thread of its own."""
    results: list = [None] * len(works)

    def run(index: int) -> None:
        try:
            results[index] = works[index]()
        except BaseException as problem:
            results[index] = problem

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("n_callers", [2, 4])
def test_threads_that_call_one_model_get_what_they_get_alone(model, n_callers) -> None:
    prompts = [[3 + i] * (40 + 90 * i) for i in range(n_callers)]
    expected = [generated(model, prompt, temperature=1.0, seed=1) for prompt in prompts]
    for _ in range(3):
        works = [lambda p=prompt: generated(model, p, temperature=1.0, seed=1) for prompt in prompts]
        assert in_threads(works) == expected


def test_two_models_at_once(model, tmp_path) -> None:
    with edgellm.load(tiny.gemma3().save(tmp_path / "other.gguf"), n_threads=2) as other:
        works = [lambda m=m, p=p: generated(m, p) for m in (model, other) for p in (PROMPT, PROMPT[::-1])]
        expected = [work() for work in works]
        assert in_threads(works) == expected


def test_two_threads_cannot_share_a_generation(model) -> None:
    for _ in range(10):
        generation = model.generate(PROMPT, temperature=0.0, max_tokens=100)
        pieces: list[str] = []

        def take(generation=generation, pieces=pieces) -> None:
            while generation.finish_reason is None:
                with contextlib.suppress(UsageError):  # another thread was in it just now
                    pieces.extend(generation)

        assert in_threads([take] * 3) == [None] * 3
        assert generation.finish_reason == "length" and len(generation.token_ids) == 100
    assert sorted("".join(pieces)) == sorted("".join(model.generate(PROMPT, temperature=0.0, max_tokens=100)))


def test_a_second_thread_is_told(model, monkeypatch) -> None:
    """While the first computes a token."""
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=3)
    choose, found = Sampler.choose, []

    def slow_choose(*args):
        found.extend(in_threads([lambda: next(generation), generation.close]))
        return choose(*args)

    monkeypatch.setattr(Sampler, "choose", slow_choose)
    list(generation)
    assert isinstance(found[0], UsageError) and "another thread" in str(found[0]) and found[1] is None
    assert generation.finish_reason == "cancelled" and not generation.token_ids


def test_closing_a_generation_that_another_thread_is_in(model) -> None:
    generation = model.generate(PROMPT, temperature=0.0)
    pieces = iter(generation)
    next(pieces)
    listing = threading.Thread(target=lambda: list(pieces))
    listing.start()
    generation.close()
    listing.join(60)
    assert generation.finish_reason in ("cancelled", "context")
    assert generated(model)


@pytest.mark.parametrize("read", [next, Generation.take])
def test_who_reads_while_the_model_is_being_closed_hears_of_that(tiny_path, monkeypatch, read) -> None:
    """And not of another thread that reads: there is none."""
    model = edgellm.load(tiny_path, n_threads=1)
    generation = model.generate(PROMPT, temperature=0.0)
    next(generation)
    retire, is_ending = Scheduler.retire, threading.Event()

    def slow_retire(self, request) -> None:
        is_ending.set()
        time.sleep(0.2)
        retire(self, request)

    def reader() -> None:
        is_ending.wait()
        read(generation)

    monkeypatch.setattr(Scheduler, "retire", slow_retire)
    (told, closed) = in_threads([reader, model.close])
    assert isinstance(told, UsageError) and "the model is closed" in str(told) and closed is None


def test_after_close(tiny_path) -> None:
    model = edgellm.load(tiny_path, n_threads=2)
    generation = model.generate(PROMPT, temperature=0.0)
    next(generation)
    model.close()
    model.close()
    for call in (lambda: next(generation), lambda: model.logits(PROMPT), lambda: model.generate(PROMPT)):
        with pytest.raises(UsageError, match="the model is closed"):
            call()
    assert generation.finish_reason == "cancelled"


def test_close_while_others_are_at_work(tiny_path) -> None:
    for n_threads in (1, 2):
        model = edgellm.load(tiny_path, n_threads=n_threads)
        started = threading.Barrier(4)

        def work(start: int, model=model, started=started) -> None:
            generation = model.generate([start] * 100, temperature=0.0)
            next(generation)
            started.wait()
            list(generation)

        def close(model=model, started=started) -> None:
            started.wait()
            model.close()

        *ends, closing = in_threads([lambda s=s: work(s) for s in (5, 6, 7)] + [close])
        assert closing is None
        assert all(end is None or (isinstance(end, UsageError) and "closed" in str(end)) for end in ends)


def test_a_generation_keeps_what_it_needs(tiny_path, model) -> None:
    """Nobody else holds the model here."""
    assert list(edgellm.load(tiny_path).generate(PROMPT, temperature=0.0, max_tokens=20)) == list(
        model.generate(PROMPT, temperature=0.0, max_tokens=20)
    )


def test_a_model_that_is_let_go_ends_its_threads(tiny_path) -> None:
    before = {*threading.enumerate()}
    model = edgellm.load(tiny_path, n_threads=3)
    generated(model)
    assert len({*threading.enumerate()} - before) == 2
    del model
    gc.collect()
    assert {*threading.enumerate()} <= before


def test_leaving_a_model_open_does_not_hold_up_the_end(tiny_path) -> None:
    code = f"import edgellm; model = edgellm.load({str(tiny_path)!r}, n_threads=3); print(model.logits([5]).shape)"
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (end.stdout, end.stderr, end.returncode) == (f"(1, {tiny.N_VOCAB})\n", "", 0)


def test_loading_again_and_again_keeps_no_memory(tiny_path) -> None:
    def cycle(n: int) -> int:
        for _ in range(n):
            with edgellm.load(tiny_path, n_threads=2) as model:
                model.logits(PROMPT)
                next(model.generate(PROMPT, temperature=0.0))
        gc.collect()
        return psutil.Process().memory_info().rss

    before = cycle(5)
    assert cycle(20) < before + KEPT_BYTES
