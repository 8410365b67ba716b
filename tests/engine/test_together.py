"""Many answers at once: each is what it is alone, in one pass with others; errors stay with their own."""

from __future__ import annotations

import pytest

import edgellm
from edgellm.engine.together import Job, together
from edgellm.errors import UsageError
from tests.arch import tiny

from .test_generation import holds_nothing
from .test_scheduler import Watched

PROMPTS = [[5 + i, 9, 14, 40] * (3 + 7 * (i % 4)) for i in range(11)]


@pytest.fixture(scope="module")
def chat_path(tmp_path_factory):
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    return checkpoint.save(tmp_path_factory.mktemp("models") / "chat.gguf")


def alone(model, prompt, **params):
    generation = model.generate(prompt, **params)
    list(generation)
    return generation.token_ids


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 4}])
def test_each_answer_is_what_it_is_alone(tiny_path, monkeypatch, params) -> None:
    with edgellm.load(tiny_path, n_threads=1, speculate="off") as model:
        expected = [alone(model, prompt, max_tokens=10 + 3 * (i % 5), **params) for i, prompt in enumerate(PROMPTS)]
        model._scheduler.prefixes.clear()
        watched = Watched(model, monkeypatch)
        jobs = (
            Job(i, [model.generate(prompt, max_tokens=10 + 3 * (i % 5), **params)]) for i, prompt in enumerate(PROMPTS)
        )
        found = {job.key: job.generations[0].token_ids for job in together(jobs, 4)}
        assert [found[i] for i in range(len(PROMPTS))] == expected
        decode = [batch for batch in watched.batches if set(batch) == {1}]
        assert max(map(len, decode)) == 4 and len(watched.batches) < sum(map(len, expected)) / 2
        assert holds_nothing(model)


def test_a_batch_has_answers_in_the_order_of_prompts(chat_path) -> None:
    with edgellm.load(chat_path, n_threads=1) as model:
        prompts = ["the tea", [5, 6, 7], [{"role": "user", "content": "the"}]]
        answers = model.batch(prompts, n_parallel=2, temperature=0.0, max_tokens=7)
        assert [answer.token_ids for answer in answers] == [
            alone(model, "the tea", temperature=0.0, max_tokens=7),
            alone(model, [5, 6, 7], temperature=0.0, max_tokens=7),
            model.chat(prompts[2], temperature=0.0, max_tokens=7).text and answers[2].token_ids,
        ]
        assert answers[2].text == model.chat(prompts[2], temperature=0.0, max_tokens=7).text
        assert all(answer.finish_reason == "length" for answer in answers)
        assert model.batch([]) == []


@pytest.mark.parametrize("wrong", ["text", 5, None, b"x"])
def test_what_is_no_list_of_prompts_is_said(model, wrong) -> None:
    with pytest.raises(UsageError, match="prompts"):
        model.batch(wrong)


def test_a_wrong_prompt_is_said_before_anything_is_computed(model, monkeypatch) -> None:
    watched = Watched(model, monkeypatch)
    with pytest.raises(UsageError):
        model.batch([[5, 6], [-1]])
    with pytest.raises(UsageError):
        model.batch([[5, 6], 7])
    assert not watched.batches


def test_what_is_wrong_with_a_prompt_is_said_with_its_place(tiny_path) -> None:
    with edgellm.load(tiny_path, n_ctx=128, n_threads=1) as model:
        with pytest.raises(edgellm.ContextOverflowError, match=r"^prompts\[1\]: the prompt has 150 tokens"):
            model.batch([[5], [5] * 150])
        with pytest.raises(UsageError, match=r"^prompts\[2\]: "):
            model.batch([[5], [6], None])
        with pytest.raises(UsageError, match=r"^temperature is -1"):  # wrong for all of them
            model.batch([[5], [6]], temperature=-1)
        with pytest.raises(UsageError, match="n is given, and a batch has one answer to each prompt"):
            model.batch([[5]], n=2)
        answers = [model.generate([5], max_tokens=1) for _ in range(2)]
        with pytest.raises(UsageError, match="text is a list of 2 answers; give one of them"):
            model.save_session("x", answers)


def test_an_error_stays_with_its_own(model) -> None:
    def breaks(ids, logits, context):
        raise RuntimeError("a step of one's own")

    generations = [
        model.generate([7, 8, 9], temperature=0.0, max_tokens=9),
        model.generate([8, 8, 9], samplers=[breaks], max_tokens=9),
        model.generate([9, 8, 9], temperature=0.0, max_tokens=9),
    ]
    jobs = {job.key: job for job in together((Job(i, [g]) for i, g in enumerate(generations)), 3)}
    assert "a step of one's own" in str(jobs[1].error)
    assert [len(generations[i].token_ids) for i in (0, 2)] == [9, 9] and jobs[0].error is None
    assert holds_nothing(model)


def test_who_stops_reading_ends_the_rest(model) -> None:
    generations = [model.generate([7 + i, 8], temperature=0.0, max_tokens=50 * i + 5) for i in range(3)]
    for _ in together((Job(i, [g]) for i, g in enumerate(generations)), 3):
        break
    assert [g.finish_reason for g in generations[1:]] == ["cancelled"] * 2 and holds_nothing(model)
