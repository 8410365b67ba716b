"""SmolLM2 against twenty schemas: every answer that comes to its end is valid, and nearly all do."""

from __future__ import annotations

import json
import time

import jsonschema
import pytest

import edgellm
from tests.engine.structure.schemas import SCHEMAS

PROMPTS = [
    "Make up an example of this data.",
    "Describe a small village with its people as JSON.",
    "A cat named Tom, three years old, lives with Anna in Rome.",
]


@pytest.fixture(scope="module")
def chatty(smollm2):
    with edgellm.load(smollm2, n_ctx=1024) as model:
        yield model


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_valid(chatty, name: str) -> None:
    schema = SCHEMAS[name]
    for seed, prompt in enumerate(PROMPTS):
        messages = [{"role": "user", "content": prompt}]
        answer = chatty.chat(messages, response_format=schema, seed=seed, temperature=0.7, max_tokens=120)
        text = "".join(answer)
        assert answer.finish_reason == "stop", text
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def test_a_mask_takes_a_small_part_of_a_token(chatty) -> None:
    """Of the time of the same answer; the first masks are made twice, as its beginning is a part of the start."""
    schema = SCHEMAS["list of objects"]
    spent = 0.0

    def timed(of):
        def call(*args):
            nonlocal spent
            begun = time.perf_counter()
            try:
                return of(*args)
            finally:
                spent += time.perf_counter() - begun

        return call

    usual = chatty.chat([{"role": "user", "content": PROMPTS[1]}], response_format=schema, seed=1, max_tokens=200)
    constraint = usual._answer._constraint
    for name in ("apply", "follow", "forced"):
        setattr(constraint, name, timed(getattr(constraint, name)))
    next(usual)
    spent, begun = 0.0, time.perf_counter()
    "".join(usual)
    # Ten in a hundred are promised on a quiet machine; this one may be busy.
    assert spent < 0.3 * (time.perf_counter() - begun)


def test_tools(chatty) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: the first
            b: the second
        """
        return a + b

    messages = [{"role": "user", "content": "What is 12 plus 30?"}]
    run = edgellm.run_tools(chatty, messages, [add], tool_choice="required", temperature=0.0, max_tokens=120)
    call, result = run.calls[0]
    assert call.name == "add" and result == str(call.arguments["a"] + call.arguments["b"])
    assert run.messages[-1]["role"] == "assistant"
