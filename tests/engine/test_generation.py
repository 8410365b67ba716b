"""Generating with a tiny random model: how it ends, what is reused, and what many callers see."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import edgellm
from edgellm.errors import ContextOverflowError, TemplateError, UsageError
from tests.arch import tiny

PROMPT = [5, 9, 14, 40, 33, 7, 8, 21] * 9


def text(model, prompt=PROMPT, **params) -> str:
    return "".join(model.generate(prompt, **({"temperature": 0.0, "max_tokens": 20} | params)))


def test_greedy_takes_the_largest_logit_every_time(model):
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=12)
    list(generation)
    ids = generation.token_ids
    logits = model.logits(PROMPT + ids)
    assert ids == [int(row.argmax()) for row in logits[len(PROMPT) - 1 : -1]][: len(ids)]


def test_same_seed_same_text(model):
    assert text(model, temperature=1.0, seed=3) == text(model, temperature=1.0, seed=3)
    assert text(model, temperature=1.0, seed=3) != text(model, temperature=1.0, seed=4)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_length(model, n):
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=n)
    list(generation)
    assert len(generation.token_ids) == n == generation.stats.n_generated_tokens
    assert generation.finish_reason == "length"


def test_the_end_of_the_context(tiny_path):
    with edgellm.load(tiny_path, n_ctx=80, n_threads=1) as model:
        generation = model.generate(PROMPT, temperature=0.0)
        list(generation)
        # The last token needs no place in the cache: nothing comes after it.
        assert generation.finish_reason == "context" and len(PROMPT) + len(generation.token_ids) == 81


def test_stop_tokens_end_the_text(model, monkeypatch):
    first = model.generate(PROMPT, temperature=0.0, max_tokens=6)
    list(first)
    stop = first.token_ids[3]
    monkeypatch.setattr(type(model.tokenizer), "stop_ids", frozenset([stop]))
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=6)
    list(generation)
    assert generation.finish_reason == "stop" and stop not in generation.token_ids


def test_cancel_between_tokens_and_during_the_prompt(tiny_path):
    with edgellm.load(tiny_path, n_threads=1, n_batch=8) as model:
        generation = model.generate(PROMPT, temperature=0.0)
        next(generation)
        generation.cancel()
        assert len(list(generation)) == 0 and generation.finish_reason == "cancelled"

        slow = model.generate(PROMPT[::-1] * 10, temperature=0.0)
        forward, calls = model._runner.forward, []

        def cancel_at_third(spans):
            calls.append(spans)
            if len(calls) == 3:
                slow.cancel()
            return forward(spans)

        model._runner.forward = cancel_at_third
        assert list(slow) == [] and slow.finish_reason == "cancelled" and len(calls) == 3
        model._runner.forward = forward
        assert text(model)


def test_ctrl_c_leaves_the_model_usable(model):
    expected = text(model)
    forward = model._runner.forward

    def interrupted(spans):
        raise KeyboardInterrupt

    generation = model.generate(PROMPT, temperature=0.0, max_tokens=20)
    next(generation)
    model._runner.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    model._runner.forward = forward
    assert text(model) == expected


def test_a_prefix_is_computed_once(model):
    expected = text(model, PROMPT + [11, 12])
    generation = model.generate(PROMPT + [11, 12, 13], temperature=0.0, max_tokens=5)
    continued = "".join(generation)
    assert generation.stats.n_reused_tokens >= len(PROMPT)
    with edgellm.load(model.path, n_threads=1) as fresh:
        assert "".join(fresh.generate(PROMPT + [11, 12, 13], temperature=0.0, max_tokens=5)) == continued
        assert text(fresh, PROMPT + [11, 12]) == expected


def test_dropped_and_closed_generations_give_their_blocks_back(model):
    cache = model._runner.cache
    for _ in range(30):
        generation = model.generate(PROMPT, temperature=0.0)
        next(generation)
        del generation
        gc.collect()
    closed = model.generate(PROMPT, temperature=0.0)
    next(closed)
    closed.close()
    assert closed.finish_reason == "cancelled"
    assert sum(s.n_blocks for s in model._idle) + cache.n_free_blocks >= cache.n_blocks
    assert len(model._idle) <= 4


def test_a_long_prompt_evicts_what_is_idle(tiny_path):
    with edgellm.load(tiny_path, n_ctx=256, n_threads=1) as model:
        for start in range(3, 15):  # more different texts than the cache holds
            text(model, [start] * 200)


@pytest.mark.parametrize(("prompt", "error", "words"), [
    ([], UsageError, "empty"),
    ([3] * 2000, ContextOverflowError, "2000 tokens and the context holds 1024"),
    ([3, 96], UsageError, "0 to 95"),
    ([-1], UsageError, "0 to 95"),
])  # fmt: skip
def test_prompts_that_cannot_work(model, prompt, error, words):
    for call in (model.generate, model.logits):
        with pytest.raises(error, match=words):
            call(prompt)


def test_wrong_words(model, tiny_path):
    with pytest.raises(UsageError, match="temprature"):
        model.generate(PROMPT, temprature=0.5)
    with pytest.raises(TemplateError, match="base model"):
        model.chat([{"role": "user", "content": "Hi"}])
    with pytest.raises(UsageError, match="trained on 1024"):
        edgellm.load(tiny_path, n_ctx=4096)
    with pytest.raises(UsageError, match="n_threads"):
        edgellm.load(tiny_path, n_threads=0)


def test_after_close(tiny_path):
    model = edgellm.load(tiny_path, n_threads=2)
    generation = model.generate(PROMPT, temperature=0.0)
    next(generation)
    model.close()
    model.close()
    for call in (lambda: next(generation), lambda: model.logits(PROMPT), lambda: model.generate(PROMPT)):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_threads_and_models_side_by_side(tiny_path, tmp_path):
    other_path = tiny.write(tiny.gemma3(), tmp_path / "other.gguf")
    prompts = [[3 + i] * (40 + 30 * i) for i in range(3)]
    with edgellm.load(tiny_path, n_threads=2) as a, edgellm.load(other_path, n_threads=2) as b:
        expected = {(m, i): text(m, prompts[i]) for m in (a, b) for i in range(3)}
        results, problems = {}, []

        def work(m, i):
            try:
                results[m, i] = text(m, prompts[i])
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=work, args=key) for key in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not problems and results == expected


def test_loading_again_and_again_keeps_no_memory(tiny_path):
    import psutil

    def cycle(n):
        for _ in range(n):
            with edgellm.load(tiny_path, n_threads=2) as model:
                model.logits(PROMPT)
        gc.collect()
        return psutil.Process().memory_info().rss

    before = cycle(5)
    assert cycle(20) < before + 30e6
    assert threading.active_count() < 10


def test_logits_of_a_single_token(model):
    assert model.logits([5]).shape == (1, tiny.N_VOCAB)
    assert model.logits(np.array([5, 6])).dtype == np.float32
