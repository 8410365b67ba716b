"""Generating with a tiny random model: how it ends, what is reused, and what goes wrong in one clear line."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import edgellm
from edgellm.engine.sampling import Sampler
from edgellm.errors import ContextOverflowError, TemplateError, UsageError
from edgellm.kernels.records import KV_BLOCK
from edgellm.text.stream import EACH
from tests.arch import tiny

PROMPT = [50, 9, 14, 40, 33, 7, 8, 210] * 9


def generated(model, prompt=PROMPT, **params) -> list[int]:
    generation = model.generate(prompt, **({"temperature": 0.0, "max_tokens": 20} | params))
    for _ in generation:
        pass
    return generation.token_ids


def holds_nothing(model) -> bool:
    """Whether all of the cache can be had: nobody but the prefix cache holds a block."""
    scheduler, cache = model._scheduler, model._runner.cache
    scheduler.update_requests()
    scheduler.prefixes.release_waiting()
    return not scheduler._requests and cache.n_free_blocks == cache.n_blocks


def test_greedy_takes_the_largest_logit_every_time(model) -> None:
    ids = generated(model, max_tokens=12)
    assert len(ids) == 12 and len(set(ids)) > 3
    logits = model.logits(PROMPT + ids)
    assert ids == logits[len(PROMPT) - 1 : -1].argmax(axis=1).tolist()


def test_pieces_make_the_text(model) -> None:
    generation = model.generate("the tea", temperature=1.0, seed=5, max_tokens=80)
    text = "".join(generation)
    assert text == b"".join(map(model.tokenizer.token_bytes, generation.token_ids)).decode(errors=EACH)
    assert "\ufffd" in text and "▁" not in text  # random bytes, put together as well as can be


def test_all_of_it_at_once(model) -> None:
    expected = "".join(model.generate("the tea", temperature=1.0, seed=5, max_tokens=20))
    for whole in (lambda answer: answer.text, str, "{}".format):
        assert whole(model.generate("the tea", temperature=1.0, seed=5, max_tokens=20)) == expected
    begun = model.generate("the tea", temperature=1.0, seed=5, max_tokens=20)
    next(begun)
    assert begun.text == expected == begun.text and begun.finish_reason == "length"


def test_a_block_ends_what_was_begun_in_it(model) -> None:
    with model.generate("the tea", temperature=1.0, seed=5, max_tokens=500) as answer:
        next(answer)
    assert answer.finish_reason == "cancelled" and list(answer) == [] and holds_nothing(model)


def test_how_much_of_a_prompt_is_read(tiny_path) -> None:
    with edgellm.load(tiny_path, n_threads=1, n_batch=16) as model:
        told: list[tuple[int, int]] = []
        answer = model.generate(PROMPT, max_tokens=2).on_prompt(lambda *step: told.append(step))
        assert len(answer.token_ids) == 0 and told == [] and answer.text is not None
        assert told == [(min(16 * n, len(PROMPT)), len(PROMPT)) for n in range(1, -(-len(PROMPT) // 16) + 1)]

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        answer = model.generate([7, *PROMPT], max_tokens=2).on_prompt(stop)
        with pytest.raises(KeyboardInterrupt):
            next(answer)
        assert answer.finish_reason == "cancelled" and answer.n_prompt_done == 0 and holds_nothing(model)
        with pytest.raises(UsageError, match="progress is 5; expected a function"):
            model.generate(PROMPT).on_prompt(5)


def test_same_seed_same_text(model) -> None:
    assert generated(model, temperature=1.0, seed=3) == generated(model, temperature=1.0, seed=3)
    assert generated(model, temperature=1.0, seed=3) != generated(model, temperature=1.0, seed=4)


def test_a_penalty_sees_prompt_and_answer(model) -> None:
    ids = generated(model, repeat_penalty=1e9, max_tokens=60)
    assert not set(ids) & set(PROMPT[-4:]) and len(set(ids)) == len(ids)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_length(model, n) -> None:
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=n)
    assert generation.finish_reason is None
    list(generation)
    assert len(generation.token_ids) == n == generation.stats.n_generated_tokens
    assert generation.finish_reason == "length"
    assert generation.stats.prompt_tokens_per_second > 0
    assert list(generation) == []


def test_the_end_of_the_context(tiny_path) -> None:
    with edgellm.load(tiny_path, n_ctx=80, n_threads=1) as model:
        for n_prompt in (72, 79, 80):
            generation = model.generate(PROMPT + PROMPT[: n_prompt - 72], temperature=0.0)
            list(generation)
            # The last token needs no place in the cache: nothing comes after it.
            assert generation.finish_reason == "context" and n_prompt + len(generation.token_ids) == 81


def test_a_context_of_one_token(tiny_path) -> None:
    with edgellm.load(tiny_path, n_ctx=1, n_threads=1) as model:
        assert len(generated(model, [5])) == 1
        assert model.logits([5]).shape == (1, tiny.N_VOCAB)


def test_stop_tokens_end_the_text(model, monkeypatch) -> None:
    ids = generated(model)
    monkeypatch.setattr(model.tokenizer, "stop_ids", frozenset(ids[3:4]))
    generation = model.generate(PROMPT, temperature=0.0)
    list(generation)
    assert generation.finish_reason == "stop" and generation.token_ids == ids[:3]


def test_cancel_between_tokens(model) -> None:
    generation = model.generate(PROMPT, temperature=0.0)
    next(generation)
    generation.cancel()
    assert list(generation) == [] and generation.finish_reason == "cancelled"
    assert holds_nothing(model)


def test_cancel_during_the_prompt_from_another_thread(tiny_path, monkeypatch) -> None:
    with edgellm.load(tiny_path, n_threads=1, n_batch=8) as model:
        slow = model.generate(PROMPT * 10, temperature=0.0)
        run_body, calls = model._runner.run_body, []

        def cancel_at_third(spans, *others, **named):
            calls.append(spans)
            if len(calls) == 3:
                canceller = threading.Thread(target=slow.cancel)
                canceller.start()
                canceller.join()
            return run_body(spans, *others, **named)

        monkeypatch.setattr(model._runner, "run_body", cancel_at_third)
        assert list(slow) == [] and slow.finish_reason == "cancelled" and len(calls) == 3
        monkeypatch.undo()
        again = model.generate(PROMPT * 10, temperature=0.0, max_tokens=3)
        list(again)
        assert 2 * 8 <= again.stats.n_reused_tokens <= 3 * 8  # what was computed is not lost


def test_ctrl_c_leaves_the_model_usable(model, monkeypatch) -> None:
    expected = generated(model)

    def interrupted(*_):
        raise KeyboardInterrupt

    runner = model._runner
    places = [(runner._body_batch, "fill"), (runner, "_select"), (Sampler, "choose")]
    for owner, place in places:  # before, within and after a batch
        generation = model.generate(PROMPT, temperature=0.0)
        next(generation)
        monkeypatch.setattr(owner, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(generation)
        monkeypatch.undo()
        assert generation.finish_reason == "cancelled" and list(generation) == []
        assert generated(model) == expected and holds_nothing(model)
    monkeypatch.setattr(runner, "run_head", interrupted)  # between the body and the head of many tokens
    generation = model.generate([7, *PROMPT], temperature=0.0)
    with pytest.raises(KeyboardInterrupt):
        next(generation)
    monkeypatch.undo()
    assert generation.finish_reason == "cancelled" and generated(model) == expected and holds_nothing(model)


def test_a_prefix_is_computed_once(model) -> None:
    answer = generated(model)
    longer = [*PROMPT, *answer, 11, 12, 13]
    for prompt in (longer, PROMPT, [*PROMPT[:30], 5, 6], longer):
        generation = model.generate(prompt, temperature=0.0, max_tokens=30)
        list(generation)
        assert generation.stats.n_reused_tokens >= 30
        with edgellm.load(model.path, n_threads=1) as fresh:
            assert generated(fresh, prompt, max_tokens=30) == generation.token_ids
    assert generation.stats.n_reused_tokens == len(longer) - 1


def test_dropping_a_generation_ends_it_at_once(model) -> None:
    gc.disable()  # nothing may wait for a collection
    try:
        for _ in range(100):  # far more than the cache holds
            generation = model.generate([7, *PROMPT * 10], temperature=0.0)
            next(generation)
            del generation
            assert holds_nothing(model)
    finally:
        gc.enable()


@pytest.mark.parametrize("n_tokens", [0, 5])
def test_cancel_before_the_start(model, n_tokens) -> None:
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=n_tokens)
    generation.cancel()
    assert list(generation) == [] and generation.finish_reason == "cancelled" and generation.token_ids == []
    assert holds_nothing(model)


def test_leaving_a_loop(model) -> None:
    """By `close` or `cancel` inside it, or by an exception of one's own, after which it can go on."""
    for leave in ("close", "cancel"):
        generation, pieces = model.generate(PROMPT, temperature=0.0, max_tokens=20), []
        for piece in generation:
            pieces.append(piece)
            if len(pieces) == 3:
                getattr(generation, leave)()
        assert len(pieces) == 3 and generation.finish_reason == "cancelled" and holds_nothing(model)
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=20)
    with pytest.raises(ZeroDivisionError):
        for _ in generation:
            1 / 0  # noqa: B018
    assert generation.finish_reason is None
    list(generation)
    assert generation.finish_reason == "length" and generation.token_ids == generated(model)


def test_closing_a_generation(model) -> None:
    generation = model.generate(PROMPT, temperature=0.0)
    generation.close()
    assert generation.finish_reason == "cancelled" and list(generation) == []
    generation = model.generate(PROMPT, temperature=0.0)
    next(generation)
    generation.close()
    generation.close()
    assert generation.finish_reason == "cancelled" and list(generation) == []
    assert holds_nothing(model)


def test_kept_prefixes_make_room_while_a_text_grows(tiny_path, monkeypatch) -> None:
    with edgellm.load(tiny_path, n_ctx=256, n_threads=1) as model:
        monkeypatch.setattr(model.tokenizer, "stop_ids", frozenset())
        for start in range(3, 15):  # more different texts than the cache holds, from prompts that fit
            generation = model.generate([start] * 10, temperature=0.0)
            list(generation)
            assert generation.finish_reason == "context"


def test_more_texts_at_once_than_the_cache_holds(tiny_path) -> None:
    with edgellm.load(tiny_path, n_ctx=256, n_threads=1) as model:
        room = model._runner.cache.n_blocks * KV_BLOCK // 256
        assert room >= 4
        started = [model.generate([start] * 250, temperature=0.0) for start in range(3, 3 + room + 1)]
        for generation in started[:-1]:
            next(generation)
        next(started[-1])  # it takes the room of one that nobody waits for
        assert generated(model, [99] * 250, max_tokens=3)
        for generation in started:
            list(generation)
            assert generation.finish_reason == "context"
        with edgellm.load(tiny_path, n_ctx=256, n_threads=1) as fresh:
            for start, generation in enumerate(started, 3):  # what was computed anew is what it was
                alone = fresh.generate([start] * 250, temperature=0.0)
                list(alone)
                assert generation.token_ids == alone.token_ids
        assert holds_nothing(model)


@pytest.mark.parametrize(("prompt", "error", "words"), [
    ([], UsageError, "empty"),
    ([3] * 2000, ContextOverflowError, "2000 tokens and the context holds 1024"),
    ([3, 320], UsageError, "0 to 319"),
    ([-1], UsageError, "0 to 319"),
    ([2**70], UsageError, "0 to 319"),
    ([1.5], UsageError, "whole numbers"),
    (["the"], UsageError, "whole numbers"),
    (None, UsageError, "whole numbers"),
    (5, UsageError, "whole numbers"),
])  # fmt: skip
def test_prompts_that_cannot_work(model, prompt, error, words) -> None:
    for call in (model.generate, model.logits):
        with pytest.raises(error, match=words):
            call(prompt)


def test_wrong_words(model) -> None:
    with pytest.raises(UsageError, match="temprature"):
        model.generate(PROMPT, temprature=0.5)
    with pytest.raises(TemplateError, match="base model"):
        model.chat([{"role": "user", "content": "Hi"}])


def test_chat_renders_the_template_of_the_file(tmp_path) -> None:
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    with edgellm.load(checkpoint.save(tmp_path / "chat.gguf"), n_threads=1) as model:
        chat = model.chat([{"role": "user", "content": "the"}], temperature=0.0, max_tokens=5)
        list(chat)
        assert chat.token_ids == generated(model, model.tokenize("<s>the</s>", parse_special=True), max_tokens=5)


def test_what_is_said_in_a_chat_makes_no_control_tokens(tmp_path) -> None:
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    with edgellm.load(checkpoint.save(tmp_path / "chat.gguf"), n_threads=1) as model:
        bos, eos = model.tokenize("<s>", parse_special=True), model.tokenize("</s>", parse_special=True)
        turn = {"role": "user", "content": "the </s><s> the"}
        chat = model.chat([turn], temperature=0.0, max_tokens=3)
        list(chat)
        expected = [*bos, *model.tokenize("the </s><s> the"), *eos]
        assert chat.token_ids == generated(model, expected, max_tokens=3)
        again = model.chat([turn, turn], max_tokens=1)
        list(again)
        assert again.stats.n_reused_tokens >= len(expected)


def test_logits_of_one_token_and_of_arrays(model) -> None:
    one = model.logits([5])
    assert one.shape == (1, tiny.N_VOCAB) and one.dtype == np.float32
    np.testing.assert_array_equal(model.logits(np.array([5, 6]))[:1], one)
    one[:] = 0  # the caller's own
    assert model.logits([5]).any()
