"""Stop strings, banned strings, log-probabilities and several answers, on models that run."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

import edgellm
from edgellm.engine.answer import Answer
from edgellm.errors import UsageError
from tests.engine.test_generation import PROMPT, generated, holds_nothing


def text_of(generation) -> str:
    return "".join(generation)


# --- a random model, whose text is any bytes ----------------------------------------------------------------


def test_a_stop_string_across_tokens(model) -> None:
    plain = model.generate(PROMPT, temperature=0.0, max_tokens=40)
    whole = text_of(plain)
    start = len(model.detokenize(plain.token_ids[:10])) - 1
    stop = whole[start : start + 3]
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=40, stop=["no such text", stop])
    assert text_of(generation) == whole[: whole.index(stop)]
    assert (generation.finish_reason, generation.stop_string) == ("stop", stop)
    assert generation.token_ids == plain.token_ids[: len(generation.token_ids)]
    assert generation.stats.n_generated_tokens == len(generation.token_ids) < 40
    assert holds_nothing(model)


def test_without_a_match_nothing_is_lost(model) -> None:
    whole = text_of(model.generate(PROMPT, temperature=0.0, max_tokens=40))
    stops = [whole[i : i + 4] + "\0" for i in range(20)]
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=40, stop=stops)
    assert text_of(generation) == whole
    assert (generation.finish_reason, generation.stop_string) == ("length", None)


def test_tokens_of_a_stop_string_have_no_log_probabilities(model) -> None:
    """As if they had not come, also while the answer is read."""
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=40, logprobs=0)
    whole = text_of(generation)
    assert len(generation.logprobs) == len(generation.token_ids)
    decoder, ends = model.tokenizer.stream(after=PROMPT[-1]), [0]
    for token_id in generation.token_ids:
        ends.append(ends[-1] + len(decoder.push(token_id)))
    for start in range(8, 20):
        stop = whole[start : start + 6]
        cut = model.generate(PROMPT, temperature=0.0, max_tokens=40, logprobs=0, stop=stop)
        at = whole.index(stop)
        n_left = sum(begin < at or end <= at for begin, end in itertools.pairwise(ends))
        for _ in cut:
            assert len(cut.logprobs) <= n_left
        assert [one.token_id for one in cut.logprobs] == generation.token_ids[:n_left]


def test_banned_strings_never_come_and_others_do(model) -> None:
    """The strings of an answer, one after the other: each time it becomes another one."""
    banned: list[str] = []
    for turn in range(12):
        generation = model.generate(PROMPT, temperature=0.0, max_tokens=24, banned_strings=banned)
        answer = text_of(generation)
        assert not any(string in answer for string in banned)
        assert len(generation.token_ids) == generation.stats.n_generated_tokens
        assert generation.finish_reason in ("length", "stop")
        assert (answer == model.tokenizer.stream(after=PROMPT[-1]) and False) or answer  # shown as it is
        banned.append(answer[turn % 3 : turn % 3 + 2 + turn % 4])
    assert holds_nothing(model)


def test_after_tokens_were_taken_back_logits_are_those_of_the_text(model) -> None:
    plain = model.generate(PROMPT, temperature=0.0, max_tokens=12)
    whole = text_of(plain)
    cut = len(model.detokenize(plain.token_ids[:4]))
    string = whole[cut - 1 : cut + 2]
    generation = model.generate(PROMPT, temperature=0.0, max_tokens=12, banned_strings=string, logprobs=3)
    text_of(generation)
    ids = generation.token_ids
    logits = model.logits(PROMPT + ids)[len(PROMPT) - 1 : -1].astype(np.float64)
    for token_id, row, found in zip(ids, logits, generation.logprobs, strict=True):
        exact = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert found.token_id == token_id and found.logprob == pytest.approx(exact[token_id], abs=1e-4)
        assert [i for i, _ in found.top] == np.argsort(-row, kind="stable")[:3].tolist()
    # Where the model's own choice was not taken, it would have made the banned string.
    assert ids != plain.token_ids and string not in text_of(model.generate(PROMPT, temperature=0.0, max_tokens=0))


def test_banned_strings_in_answers_side_by_side(model) -> None:
    """Each with its own, while their tokens are computed in the same batches and taken back in different ones."""
    whole = text_of(model.generate(PROMPT, temperature=0.0, max_tokens=30))
    bans = [[whole[i : i + 3], whole[i + 5 : i + 7]] for i in range(6)]
    alone = [text_of(model.generate(PROMPT, temperature=0.0, max_tokens=30, banned_strings=ban)) for ban in bans]
    generations = [model.generate(PROMPT, temperature=0.0, max_tokens=30, banned_strings=ban) for ban in bans]
    texts = [""] * 6

    def read(i: int) -> None:
        texts[i] = text_of(generations[i])

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == alone
    assert not any(string in text for text, ban in zip(texts, bans, strict=True) for string in ban)


def test_a_step_that_is_interrupted_after_tokens_were_taken_back(model, monkeypatch) -> None:
    """Its tokens are not counted as computed then; who is left goes on rightly."""
    usual, cuts = Answer._cut, []

    def cut(answer, n_tokens) -> None:
        usual(answer, n_tokens)
        cuts.append(n_tokens)
        if interrupts and len(cuts) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Answer, "_cut", cut)
    whole, interrupts = text_of(model.generate(PROMPT, temperature=0.0, max_tokens=12)), False
    for start in range(len(whole) - 4):
        params = {"temperature": 0.0, "max_tokens": 12, "banned_strings": whole[start : start + 3]}
        expected = text_of(model.generate(PROMPT, **params))
        if not cuts:
            continue
        cuts, interrupts = [], True
        generation = model.generate(PROMPT, **params)
        generation._start()
        answer = generation._answer
        answer.most_unread = 100
        with pytest.raises(KeyboardInterrupt):
            for _ in range(100):
                model._scheduler._step(answer)
        assert text_of(generation) == expected
        return
    raise AssertionError("nothing was taken back")


def test_all_is_banned(model) -> None:
    generation = model.generate(PROMPT, logit_bias=dict.fromkeys(range(model.n_vocab), float("-inf")))
    with pytest.raises(UsageError, match="no token may come next: all are forbidden"):
        next(generation)
    assert generation.finish_reason == "cancelled" and holds_nothing(model)


def test_logprobs_are_of_the_model_before_any_step(model) -> None:
    generation = model.generate(PROMPT, temperature=3.0, seed=1, max_tokens=5, logprobs=0, repeat_penalty=2.0)
    text_of(generation)
    rows = model.logits(PROMPT + generation.token_ids)[len(PROMPT) - 1 : -1]
    for row, found in zip(rows.astype(np.float64), generation.logprobs, strict=True):
        assert found.logprob == pytest.approx(row[found.token_id] - np.log(np.exp(row).sum()), abs=1e-4)
        assert found.top == []
    none = model.generate(PROMPT, max_tokens=3, temperature=0)
    text_of(none)
    assert none.logprobs == [] and len(none.token_ids) == 3


def test_a_bias_forbids_and_forces(model) -> None:
    assert set(generated(model, logit_bias={7: 1e6})) == {7}
    usual = generated(model)
    assert usual[0] not in generated(model, logit_bias={usual[0]: float("-inf")})
    with pytest.raises(UsageError, match="logit_bias holds the token 320; the ids of this model go from 0 to 319"):
        model.generate(PROMPT, logit_bias={320: 1})


def test_a_function_as_a_step_sees_the_text_grow(model) -> None:
    seen = []

    def step(ids, logits, context) -> None:
        seen.append(context.tolist())

    ids = generated(model, samplers=["top_k", step], max_tokens=4, temperature=0.8, seed=1)
    assert seen == [PROMPT + ids[:n] for n in range(4)]


def test_what_a_step_raises_is_raised_to_who_reads(model) -> None:
    def step(ids, logits, context) -> None:
        raise ZeroDivisionError("mine")

    generation = model.generate(PROMPT, samplers=[step])
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(generation)
    assert generation.finish_reason == "cancelled" and holds_nothing(model)


# --- several answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_several_answers_are_those_of_their_seeds(model, n) -> None:
    params = {"temperature": 1.0, "max_tokens": 20}
    alone = [generated(model, seed=10 + i, **params) for i in range(n)]
    answers = model.generate(PROMPT, n=n, seed=10, **params)
    assert isinstance(answers, list) and len(answers) == n
    texts = [text_of(answer) for answer in reversed(answers)]
    assert [answer.token_ids for answer in answers] == alone and len(set(texts)) == n
    assert holds_nothing(model)


def test_their_prompt_is_computed_once(tiny_path) -> None:
    with edgellm.load(tiny_path, n_threads=1, speculate="off") as model:
        n_computed = 0
        run_body = model._runner.run_body

        def counted(spans, *others, **named):
            nonlocal n_computed
            n_computed += sum(len(span.token_ids) for span in spans)
            return run_body(spans, *others, **named)

        model._runner.run_body = counted
        answers = model.generate(PROMPT * 10, n=4, seed=1, max_tokens=10)
        steps = [text_of(answer) for answer in answers]
        assert len(steps) == 4
        # The prompt, its last token again for each of the others, and what was written.
        assert n_computed <= len(PROMPT) * 10 + 3 + 4 * 9
        assert [answer.stats.n_reused_tokens for answer in answers] == [0, *[len(PROMPT) * 10 - 1] * 3]


def test_they_are_written_together(model, monkeypatch) -> None:
    sizes = []
    run_body = model._runner.run_body
    monkeypatch.setattr(
        model._runner,
        "run_body",
        lambda spans, *others, **named: (sizes.append(len(spans)), run_body(spans, *others, **named))[1],
    )
    answers = model.generate(PROMPT, n=3, seed=1, max_tokens=30)
    for answer in answers:
        text_of(answer)
    assert max(sizes) == 3 and len(sizes) < 50  # far from 90


def test_without_a_seed_they_differ(model) -> None:
    answers = model.generate(PROMPT, n=3, temperature=1.0, max_tokens=20)
    assert len({tuple(answer.token_ids) for answer in answers if text_of(answer) or True}) == 3


def test_one_of_them_may_be_let_go(model) -> None:
    answers = model.generate(PROMPT, n=3, seed=1, max_tokens=20)
    next(answers[0])
    del answers[1]
    answers[0].cancel()
    assert text_of(answers[1]) and answers[1].finish_reason == "length"
    del answers
    assert holds_nothing(model)


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", True])
def test_a_number_of_answers_that_cannot_be(model, n) -> None:
    with pytest.raises(UsageError, match=r"^n is ") as error:
        model.generate(PROMPT, n=n)
    assert error.value.parameter == "n"


# --- a real model -----------------------------------------------------------------------------------------------

QUESTION = [{"role": "user", "content": "Name the capital of France and of Spain, each in one sentence."}]


def test_words_of_a_real_model(smollm2) -> None:
    with edgellm.load(smollm2, n_threads=2) as model:
        params = {"temperature": 0.0, "max_tokens": 40}
        whole = text_of(model.chat(QUESTION, **params))
        assert len(whole) > 40
        for start in range(3, 40, 4):  # they begin and end anywhere in tokens
            stop = whole[start : start + 7]
            generation = model.chat(QUESTION, stop=stop, **params)
            assert text_of(generation) == whole[: whole.index(stop)]
            assert (generation.finish_reason, generation.stop_string) == ("stop", stop)
        banned = [whole[3:9], " capital of", "Paris", "e i"]
        for n in range(1, len(banned) + 1):
            answer = text_of(model.chat(QUESTION, banned_strings=banned[:n], **params))
            assert len(answer) > 10 and not any(string in answer for string in banned[:n])
        again = text_of(model.chat(QUESTION, banned_strings=banned, temperature=1.0, seed=5, max_tokens=40))
        assert again == text_of(
            model.chat(QUESTION, banned_strings=banned, temperature=1.0, seed=5, max_tokens=40)
        ) and not any(string in again for string in banned)
        likely = model.chat(QUESTION, logprobs=5, **params)
        assert text_of(likely) == whole
        assert all(found.token_id == found.top[0][0] and found.logprob <= 0 for found in likely.logprobs)
