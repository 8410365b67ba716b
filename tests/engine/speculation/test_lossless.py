"""Guessing changes no answer: the same tokens, greedy and sampled, alone and together, whatever guesses."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

import edgellm
from edgellm.engine.speculation import Guess
from edgellm.errors import UsageError
from tests.arch import tiny

PROMPT = [50, 9, 14, 40, 33, 7, 8, 210] * 4
ALL = {"max_tokens": 60}
ANSWERS = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "seed": 8, "repeat_penalty": 1.3},
    {"temperature": 0.3, "seed": 1, "mirostat": 2},
    {"temperature": 0.5, "seed": 2, "logprobs": 2},
    {"temperature": 0.0, "dry_multiplier": 0.8},
    {"temperature": 0.0, "max_tokens": 1},
    {"temperature": 0.0, "max_tokens": 2},
]


class Oracle:
    """Guesses what it was told will come, with a wrong token now and then."""

    def __init__(self, text: list[int], wrong_every: int = 0) -> None:
        self.text, self.wrong_every = text, wrong_every

    def guess(self, requests, most, pace):
        found = {}
        for request in requests:
            n = len(request.tokens)
            tokens = self.text[n : n + min(most, request.most_guesses)]
            if self.wrong_every:
                tokens = [t if (n + i) % self.wrong_every else (t + 1) % 200 for i, t in enumerate(tokens)]
            if tokens:
                found[request] = Guess(tokens, [0.9] * len(tokens))
        return found

    def forget(self, request) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def draft_path(tmp_path_factory):
    """A smaller random Llama of the same vocabulary: it hardly ever guesses right."""
    return tiny.llama(num_hidden_layers=1).save(tmp_path_factory.mktemp("models") / "draft.gguf")


def told(model, params, prompt=PROMPT):
    generation = model.generate(prompt, **(ALL | params))
    text = "".join(generation)
    return generation.token_ids, text, generation.finish_reason, [one.logprob for one in generation.logprobs]


@pytest.fixture(scope="module")
def plain(tiny_path):
    with edgellm.load(tiny_path, n_threads=1, speculate="off") as model:
        yield [told(model, params) for params in ANSWERS]


def with_draft(tiny_path, draft_path, which):
    options = {
        "lookup": {},
        "draft": {"draft": draft_path},
        "itself": {"draft": tiny_path},
        "layers": {"draft_layers": 1},
        "chained": {"draft": draft_path, "draft_layers": 1},
    }
    return edgellm.load(tiny_path, n_threads=1, speculate="always", **options[which])


@pytest.mark.parametrize("which", ["lookup", "draft", "itself", "layers", "chained"])
def test_answers_are_the_same_to_the_token(tiny_path, draft_path, plain, which) -> None:
    with with_draft(tiny_path, draft_path, which) as model:
        assert [told(model, params) for params in ANSWERS] == plain
        generation = model.generate(PROMPT, temperature=0.0, **ALL)
        list(generation)
        stats = generation.stats
        assert 0 <= stats.n_accepted_tokens <= stats.n_draft_tokens > 0
        if which == "itself":  # it is always right
            assert stats.n_accepted_tokens == stats.n_draft_tokens
        model._scheduler.update_requests()
        model._scheduler.prefixes.clear()
        assert model._runner.cache.n_free_blocks == model._runner.cache.n_blocks


@pytest.mark.parametrize("wrong_every", [0, 3, 1])
def test_right_guesses_save_passes_and_wrong_ones_change_nothing(tiny_path, wrong_every, monkeypatch) -> None:
    with edgellm.load(tiny_path, n_threads=1, speculate="off") as model:
        expected = told(model, {"temperature": 0.0})
    with edgellm.load(tiny_path, n_threads=1, speculate="always") as model:
        model._scheduler.speculator.drafters = [Oracle(PROMPT + expected[0], wrong_every)]
        passes: list[int] = []
        run_body = model._runner.run_body

        def counted(spans, *others, **named):
            passes.append(len(spans))
            return run_body(spans, *others, **named)

        monkeypatch.setattr(model._runner, "run_body", counted)
        assert told(model, {"temperature": 0.0}) == expected
        n = len(expected[0])
        assert len(passes) <= {0: 2 + n // 15, 3: n // 2 + 2, 1: n}[wrong_every]


def test_several_texts_with_guesses_at_once(tiny_path) -> None:
    prompts = [[5 + i, 6, 7, 5 + i, 6, 7, 5 + i] * 3 for i in range(4)]
    answers = {}
    for mode in ("off", "always"):
        with edgellm.load(tiny_path, n_threads=1, speculate=mode) as model:
            generations = [model.generate(p, temperature=0.6, seed=i, max_tokens=40) for i, p in enumerate(prompts)]
            for generation in generations:
                next(generation)
            for generation in generations:
                list(generation)
            answers[mode] = [generation.token_ids for generation in generations]
    assert answers["always"] == answers["off"]


def test_stop_and_banned_strings_with_guesses(tiny_path) -> None:
    with edgellm.load(tiny_path, n_threads=1, speculate="off") as model:
        text = told(model, {"temperature": 0.0})[1]
        some = next(text[i : i + 2] for i in range(8, len(text)) if text[i : i + 2].isprintable())
        cases = [{"temperature": 0.0, "stop": some}, {"temperature": 0.0, "banned_strings": some}]
        expected = [told(model, case) for case in cases]
    with edgellm.load(tiny_path, n_threads=1, speculate="always") as model:
        assert [told(model, case) for case in cases] == expected


def test_sampled_answers_have_the_model_s_distribution(tiny_path) -> None:
    """The token behind a guess, over many seeds, against the probabilities that the logits give."""
    with edgellm.load(tiny_path, n_threads=1, speculate="always") as model:
        params = {"temperature": 0.25, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 3}
        guessed = int(np.argmax(model.logits(PROMPT)[-1]))
        model._scheduler.speculator.drafters = [Oracle([*PROMPT, guessed, 5, 5])]

        def second(seed: int) -> int:
            """The token behind the likeliest first one; -1 where another one came first."""
            generation = model.generate(PROMPT, seed=seed, **params)
            list(generation)
            return generation.token_ids[1] if generation.token_ids[0] == guessed else -1

        counts = Counter(second(seed) for seed in range(600))
        del counts[-1]
        n = sum(counts.values())
        logits = model.logits([*PROMPT, guessed])[-1].astype(np.float64) / 0.25
        p = np.exp(logits - logits.max())
        p /= p.sum()
        likely = [i for i in range(len(p)) if n * p[i] >= 5]
        rest = n - sum(counts[i] for i in likely)
        squares = sum((counts[i] - n * p[i]) ** 2 / (n * p[i]) for i in likely)
        expected_rest = n * (1 - p[likely].sum())
        if expected_rest > 0:
            squares += (rest - expected_rest) ** 2 / expected_rest
        freedom = len(likely)
        assert n > 50 and squares < freedom + 4 * math.sqrt(2 * freedom) + 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draft_layers": 2}, "draft_layers is 2, and the model has 2 layers"),
        ({"draft_layers": 0}, "draft_layers is 0"),
        ({"speculate": "maybe"}, "speculate is 'maybe'"),
        ({"speculate": "off", "draft_layers": 1}, "speculate is off"),
        ({"draft": 7}, "draft is 7"),
        ({"draft_max": 0}, "draft_max is 0"),
    ],
)
def test_what_cannot_guess_is_said(tiny_path, options, words) -> None:
    with pytest.raises(UsageError, match=words):
        edgellm.load(tiny_path, n_threads=1, **options)


def test_a_draft_of_another_vocabulary_is_refused(tiny_path, tmp_path) -> None:
    other = tiny.llama()
    tokens = list(other.metadata["tokenizer.ggml.tokens"])
    tokens[300] = "else"
    other.metadata["tokenizer.ggml.tokens"] = tokens
    path = other.save(tmp_path / "other.gguf")
    with pytest.raises(UsageError, match="another vocabulary: its token 300 is 'else'"):
        edgellm.load(tiny_path, n_threads=1, draft=path)
