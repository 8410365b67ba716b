"""Turns of Anthropic's messages: those of one role that follow each other are one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.arch import tiny
from tests.text.calls.templates import TEMPLATES

from .running import Running, running

ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, models = tmp_path_factory.mktemp("turns"), dict[str, Path]()
    for name, source in (("alternate", ALTERNATE), ("calls", TEMPLATES["hermes"])):
        checkpoint = tiny.llama()
        checkpoint.metadata["tokenizer.chat_template"] = source
        models[name] = checkpoint.save(folder / f"{name}.gguf")
    with running(models) as found:
        yield found


def told(server: Running, model: str, messages: list[tuple[str, Any]], **more: Any) -> tuple[Any, int]:
    """The answer, and how many tokens its prompt has."""
    listed = [{"role": role, "content": content} for role, content in messages]
    found = server.post("/v1/messages", {**GREEDY, "model": model, "messages": listed, **more})
    assert found.status_code == 200, found.text
    usage = found.json()["usage"]
    return found.json()["content"], usage["input_tokens"] + usage["cache_read_input_tokens"]


@pytest.mark.parametrize("system", [{}, {"system": "Be brief."}])
def test_texts_of_one_role_are_one_message(server: Running, system: dict[str, Any]) -> None:
    def block(*texts: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text} for text in texts]

    model = "calls" if system else "alternate"
    joined = [("user", "the tea\nand milk"), ("assistant", "is\nhot"), ("user", "so\nwhat")]
    wanted = told(server, model, joined, **system)
    for messages in (
        [("user", "the tea"), ("user", "and milk"), ("assistant", "is"), ("assistant", "hot"), ("user", "so\nwhat")],
        [("user", block("the tea")), ("user", "and milk"), ("assistant", block("is", "hot")), ("user", block("so")),
         ("user", "what")],
    ):  # fmt: skip
        assert told(server, model, messages, **system) == wanted


def test_an_answer_goes_on_from_all_that_was_begun(server: Running) -> None:
    wanted = told(server, "alternate", [("user", "the tea"), ("assistant", "is\nhot")])
    assert told(server, "alternate", [("user", "the tea"), ("assistant", "is"), ("assistant", "hot")]) == wanted


def test_calls_and_results_of_one_turn(server: Running) -> None:
    def call(name: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": f"toolu_{name}", "name": "get", "input": {"x": name}}

    def result(name: str) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": f"toolu_{name}", "content": name}

    text = {"type": "text", "text": "and then"}
    whole = [("user", "a"), ("assistant", [text, call("b"), call("c")]), ("user", [result("b"), result("c"), text])]
    parts = [("user", "a"), ("assistant", [text]), ("assistant", [call("b")]), ("assistant", [call("c")]),
             ("user", [result("b")]), ("user", [result("c")]), ("user", "and then")]  # fmt: skip
    assert told(server, "calls", parts) == told(server, "calls", whole)
