"""One scheduler: whoever asks, together or alone, gets the same; prefixes are shared; nobody waits for ever."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import edgellm
from edgellm.engine.request import Scores
from edgellm.engine.speculation import NO_SPECULATION
from edgellm.errors import BusyError, MemoryLimitError, UsageError
from edgellm.kernels.records import KV_BLOCK
from tests.arch import tiny

from .test_generation import PROMPT, generated, holds_nothing
from .test_side_by_side import in_threads


class Watched:
    """The batches that a model computes: for each, how many tokens of how many texts."""

    def __init__(self, model, monkeypatch, seconds: float = 0) -> None:
        self.batches: list[list[int]] = []
        run_body = model._runner.run_body

        def watch(spans, *others, **named):
            self.batches.append([len(span.token_ids) for span in spans])
            time.sleep(seconds)  # as a larger model would take, meanwhile other threads come
            return run_body(spans, *others, **named)

        monkeypatch.setattr(model._runner, "run_body", watch)


def test_texts_that_are_written_at_once_share_batches(model, monkeypatch) -> None:
    prompts = [[5 + i] * 30 for i in range(3)]
    expected = [generated(model, prompt, max_tokens=40) for prompt in prompts]
    watched = Watched(model, monkeypatch, seconds=0.003)
    started = threading.Barrier(3)

    def write(prompt: list[int]) -> list[int]:
        started.wait()
        return generated(model, prompt, max_tokens=40)

    assert in_threads([lambda p=prompt: write(p) for prompt in prompts]) == expected
    assert [1, 1, 1] in watched.batches
    assert len(watched.batches) < 3 * 40


def test_in_one_thread_others_go_along_for_a_few_tokens(model, monkeypatch) -> None:
    """Texts that were begun are computed beside the one that is asked for, until their readers must catch up."""
    expected = [generated(model, [5 + i] * 30) for i in range(2)]
    monkeypatch.setattr(model._scheduler, "speculator", NO_SPECULATION)  # or a pass may give several tokens
    watched = Watched(model, monkeypatch)
    first, second = (model.generate([5 + i] * 30, temperature=0.0, max_tokens=20) for i in range(2))
    next(first)
    next(second)
    list(first)
    assert len(second.token_ids) == 1 and second.finish_reason is None
    list(second)
    assert [first.token_ids, second.token_ids] == expected
    assert sum(len(batch) == 2 for batch in watched.batches) >= 8


def test_a_prompt_does_not_hold_up_who_reads_an_answer(tiny_path, monkeypatch) -> None:
    with edgellm.load(tiny_path, n_threads=1, n_batch=256) as model:
        reading = model.generate(PROMPT, temperature=0.0)
        next(reading)
        model._scheduler._prompt_rate = 160.0  # a slow machine: 16 tokens in a tenth of a second
        monkeypatch.setattr(model._scheduler, "_note_rate", lambda n, seconds: None)
        watched = Watched(model, monkeypatch)
        model._scheduler.submit(long := Scores([9] * 200))
        long.ask(200, np.empty((1, model.n_vocab), np.float32))
        for _ in range(15):
            next(reading)
        assert [1, 16] in watched.batches and max(map(sum, watched.batches)) == 17


def test_short_prompts_do_not_wait_for_long_ones(tiny_path, monkeypatch) -> None:
    with edgellm.load(tiny_path, n_threads=1, n_batch=64) as model:
        watched = Watched(model, monkeypatch)
        requests = []
        for n in (500, 20, 300):
            requests.append(model._scheduler.submit(Scores([n % 200] * n)))
            requests[-1].ask(n, np.empty((1, model.n_vocab), np.float32))
        model._scheduler.wait(requests[1])
        assert len(watched.batches) == 1 and sorted(watched.batches[0]) == [20, 22, 22]
        for request in requests:
            model._scheduler.wait(request)
        assert sum(map(sum, watched.batches)) == 820


def test_live_texts_share_their_prefix(model) -> None:
    shared = [3 + i % 200 for i in range(200)]
    first = model.generate([*shared, 7], temperature=0.0, max_tokens=5)
    next(first)
    second = model.generate([*shared, 8], temperature=0.0, max_tokens=5)
    next(second)
    assert second.stats.n_reused_tokens == 200
    list(first), list(second)
    with edgellm.load(model.path, n_threads=1) as fresh:
        assert generated(fresh, [*shared, 8], max_tokens=5) == second.token_ids


def test_a_prefix_that_is_being_computed_is_waited_for(tiny_path, monkeypatch) -> None:
    """Of equal prompts that come at the same time, one is computed."""
    with edgellm.load(tiny_path, n_threads=1) as model:
        shared = [3 + i % 200 for i in range(4 * KV_BLOCK)]
        watched = Watched(model, monkeypatch, seconds=0.01)
        generations = [model.generate([*shared, 7 + i], temperature=0.0, max_tokens=3) for i in range(4)]
        results = in_threads([lambda g=generation: list(g) for generation in generations])
        assert not any(isinstance(result, BaseException) for result in results)
        prompt_tokens = sum(n for batch in watched.batches for n in batch if n > 1)
        assert prompt_tokens < 2 * len(shared)
        reused = sorted(generation.stats.n_reused_tokens for generation in generations)
        assert reused[0] == 0 and reused[1:] == [len(shared)] * 3


def test_cancelling_does_not_wait_for_a_batch(tiny_path, monkeypatch) -> None:
    """In the middle of a batch, which nobody else needs: it ends early, and nothing of it counts."""
    with edgellm.load(tiny_path, n_threads=2) as model:
        slow = model.generate([7] * 500, temperature=0.0)
        team, lead, calls = model._runner.team, model._runner.team._lead, []

        def cancel_in_the_middle(*words) -> None:
            lead(*words)
            calls.append(words)
            if len(calls) == 2:
                slow.cancel()

        monkeypatch.setattr(team, "_lead", cancel_in_the_middle)
        assert list(slow) == [] and slow.finish_reason == "cancelled"
        monkeypatch.undo()
        again = model.generate([7] * 500, temperature=0.0, max_tokens=3)
        list(again)
        assert again.stats.n_reused_tokens == 0
        with edgellm.load(tiny_path, n_threads=1) as fresh:
            assert generated(fresh, [7] * 500, max_tokens=3) == again.token_ids


def test_a_batch_that_others_need_goes_on(model) -> None:
    expected = generated(model, [9] * 100)
    model._scheduler.prefixes.clear()
    doomed, other = (
        model.generate([8] * 100, temperature=0.0),
        model.generate([9] * 100, temperature=0.0, max_tokens=20),
    )
    threads = [threading.Thread(target=list, args=(generation,)) for generation in (doomed, other)]
    for thread in threads:
        thread.start()
    doomed.cancel()
    for thread in threads:
        thread.join(60)
    assert other.token_ids == expected and doomed.finish_reason == "cancelled"
    assert holds_nothing(model)


def test_what_goes_wrong_with_one_text_is_its_own(model, monkeypatch) -> None:
    from edgellm.engine.sampling import Sampler

    choose = Sampler.choose

    def picky(self, logits, context, *rest):
        if 8 in context[:5]:
            raise ValueError("no eights")
        return choose(self, logits, context, *rest)

    expected = generated(model, [9] * 50)
    monkeypatch.setattr(Sampler, "choose", picky)
    results = in_threads([lambda: generated(model, [8] * 50), lambda: generated(model, [9] * 50)])
    assert isinstance(results[0], ValueError) and results[1] == expected
    assert holds_nothing(model)


def test_many_threads_on_a_cache_that_holds_few(tiny_path) -> None:
    """Texts lose their room to others and are computed anew; none is stuck, and all are what they are alone."""
    with edgellm.load(tiny_path, n_ctx=256, n_threads=1, cache_bytes=150_000) as model:
        assert model._runner.cache.n_blocks < 3 * 256 // KV_BLOCK
        prompts = [[3 + i] * (60 + 20 * i) for i in range(8)]
        expected = [generated(model, prompt, temperature=1.0, seed=1, max_tokens=60) for prompt in prompts]
        works = [lambda p=p: generated(model, p, temperature=1.0, seed=1, max_tokens=60) for p in prompts]
        assert in_threads(works) == expected
        assert holds_nothing(model)


def test_the_memory_of_the_cache_is_a_setting(tiny_path) -> None:
    with edgellm.load(tiny_path, n_ctx=256) as model:
        token_bytes = model._runner.cache.token_bytes
    with edgellm.load(tiny_path, n_ctx=256, cache_bytes=1000 * token_bytes) as model:
        assert model._runner.cache.n_blocks == 1000 // KV_BLOCK
    with pytest.raises(MemoryLimitError, match="cache_bytes is 1000, and a context of 256 tokens needs"):
        edgellm.load(tiny_path, n_ctx=256, cache_bytes=1000)
    for wrong in (0, -1, "1 GB", 1.5):
        with pytest.raises(UsageError, match="cache_bytes"):
            edgellm.load(tiny_path, cache_bytes=wrong)


def test_who_has_the_model_alone_holds_up_others_and_leaves_nothing_behind(model) -> None:
    """Under other weights, no text of another thread is computed, and no prefix is kept for later."""
    expected = generated(model, [9] * 50)
    name = "blk.0.attn_q.weight"
    raw = np.zeros_like(model._runner.tensors[name].raw)
    inside, may_end = threading.Event(), threading.Event()

    def other() -> list[int]:
        inside.wait()
        threading.Timer(0.05, may_end.set).start()
        return generated(model, [9] * 50)

    def alone() -> list[int]:
        with model.bind({name: raw}):
            inside.set()
            found = generated(model, [9] * 50)
            may_end.wait()
        return found

    changed, found = in_threads([alone, other])
    assert found == expected != changed
    assert generated(model, [9] * 50) == expected


def test_a_step_cannot_begin_another(model, monkeypatch) -> None:
    from edgellm.engine.sampling import Sampler

    monkeypatch.setattr(Sampler, "choose", lambda *_: int(model.logits([5])[0].argmax()))
    with pytest.raises(BusyError, match="in the middle of a step"):
        generated(model, [5, 6])
    monkeypatch.undo()
    assert generated(model, [5, 6])


def test_a_request_after_close(tiny_path) -> None:
    model = edgellm.load(tiny_path, n_threads=2)
    scheduler, late, early = model._scheduler, Scores([5, 6]), Scores([5, 6])
    for request in (late, early):
        request.ask(2, np.empty((1, model.n_vocab), np.float32))
    scheduler.submit(early)
    model.close()
    scheduler.submit(late)
    for request in (late, early):
        with pytest.raises(UsageError, match="the model is closed"):
            scheduler.wait(request)


def test_random_work_against_texts_alone(tiny_path) -> None:
    """Texts that begin, pause, go on and end in any order, on a small cache: each is what it is alone."""
    random = np.random.default_rng(3)
    with edgellm.load(tiny_path, n_ctx=256, n_threads=1, cache_bytes=150_000) as model:
        alone: dict[tuple[int, ...], list[int]] = {}
        live: list[tuple[tuple[int, ...], object]] = []
        for _ in range(150):
            action = random.integers(0, 4)
            if action == 0 or not live:
                prompt = [5] * int(random.integers(1, 100)) + random.integers(3, 300, random.integers(1, 60)).tolist()
                live.append((tuple(prompt), model.generate(prompt, temperature=0.0, max_tokens=30)))
            elif action == 3:
                live.pop(int(random.integers(len(live))))[1].close()
            else:
                prompt, generation = live[int(random.integers(len(live)))]
                for _ in range(int(random.integers(1, 12))):
                    if next(generation, None) is None:
                        break
        works = [(prompt, list(generation), generation.token_ids) for prompt, generation in live]
    with edgellm.load(tiny_path, n_ctx=256, n_threads=1) as fresh:
        for prompt, _, token_ids in works:
            alone[prompt] = generated(fresh, list(prompt), max_tokens=30)
            assert token_ids == alone[prompt]


def test_a_first_token_costs_little_more_than_its_batch(model) -> None:
    """No thread is started and nothing is waited for: at best, the extra time is far below a millisecond."""
    model.logits([5])
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        request = model._scheduler.submit(Scores([5]))
        request.is_over = True
        model._scheduler.wait(request)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.001


def test_gemma_sliding_windows_in_batches_of_several(tmp_path) -> None:
    with edgellm.load(tiny.gemma3().save(tmp_path / "gemma3.gguf"), n_threads=2) as model:
        prompts = [[3 + i] * (70 * (i + 1)) for i in range(3)]
        expected = [generated(model, prompt) for prompt in prompts]
        model._scheduler.prefixes.clear()
        assert in_threads([lambda p=p: generated(model, p) for p in prompts]) == expected


def test_nobody_is_forgotten_who_waited_while_others_came_and_went(model) -> None:
    """Generations that are dropped, and models taken alone, hold the lock for moments only; who waits goes on."""
    expected = generated(model, [9] * 30, max_tokens=200)
    done = threading.Event()

    def disturb() -> None:
        while not done.is_set():
            generation = model.generate([7, 8, 9], temperature=0.0, max_tokens=2)
            next(generation)
            del generation
            with model.square_sums():
                pass

    disturbing = [threading.Thread(target=disturb) for _ in range(2)]
    for thread in disturbing:
        thread.start()
    try:
        found = in_threads([lambda: generated(model, [9] * 30, max_tokens=200)] * 2)
    finally:
        done.set()
    for thread in disturbing:
        thread.join(60)
        assert not thread.is_alive()
    assert found == [expected] * 2
