"""The chat template that is asked for, and what templates are told beside the messages, over HTTP.

What a template writes is transformers' own rendering: the answer to it as a plain text is the answer of the chat.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from edgellm.params import RuntimeConfig

from .running import Running, running

SOURCE = (
    "{% for t in tools or [] %}tool {{ t | tojson }}\n{% endfor %}"
    "{% for d in documents or [] %}document {{ d.title }}: {{ d.text }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }} says {{ m.content }}\n{% endfor %}{{ mood | default('calm') }}:"
)
HI = [{"role": "user", "content": "Hi"}]
DOCUMENTS = [{"title": "T", "text": "a b"}, {"title": "U", "text": "c"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def asked(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that was started with --template FILE."""
    path = tmp_path_factory.mktemp("template") / "asked.jinja"
    path.write_text(SOURCE, encoding="utf-8")
    with running({"tiny": tiny_chat}, runtime=RuntimeConfig(template=str(path))) as server:
        yield server


def rendered(**variables: Any) -> str:
    texts, _ = chat_template_utils.render_jinja_template(
        [HI], chat_template=SOURCE, add_generation_prompt=True, **variables
    )
    return texts[0]


def answers(server: Running, prompt: str, **more: Any) -> tuple[Any, Any]:
    """(text, tokens of the prompt) of a chat, and of the text that its template should write."""
    chat = server.post("/v1/chat/completions", GREEDY | {"messages": HI} | more)
    ids = server.post("/tokenize", {"model": "tiny", "content": prompt}).json()["tokens"]
    plain = server.post("/v1/completions", GREEDY | {"prompt": ids})
    assert chat.status_code == plain.status_code == 200, chat.text
    of_chat, of_plain = chat.json(), plain.json()
    return (
        (of_chat["choices"][0]["message"]["content"], of_chat["usage"]["prompt_tokens"]),
        (of_plain["choices"][0]["text"], of_plain["usage"]["prompt_tokens"]),
    )


@pytest.mark.parametrize(
    ("more", "variables"),
    [
        ({}, {}),
        ({"chat_template_kwargs": {"mood": "glad"}}, {"mood": "glad"}),
        ({"chat_template_kwargs": {"documents": DOCUMENTS}}, {"documents": DOCUMENTS}),
        ({"documents": DOCUMENTS}, {"documents": DOCUMENTS}),
        ({"documents": DOCUMENTS, "chat_template_kwargs": {"mood": "glad"}}, {"documents": DOCUMENTS, "mood": "glad"}),
        ({"tools": TOOLS, "tool_choice": "none"}, {}),
    ],
    ids=str,
)
def test_what_a_template_is_told(asked: Running, more: dict[str, Any], variables: dict[str, Any]) -> None:
    of_chat, of_plain = answers(asked, rendered(**variables), **more)
    assert of_chat == of_plain


def test_documents_that_are_given_twice(asked: Running) -> None:
    twice = {"documents": DOCUMENTS, "chat_template_kwargs": {"documents": DOCUMENTS}}
    found = asked.post("/v1/chat/completions", GREEDY | {"messages": HI} | twice)
    assert found.status_code == 400 and "documents" in found.json()["error"]["message"]


def test_other_interfaces_take_it_too(asked: Running) -> None:
    """And say which it is."""
    (text, _), _ = answers(asked, rendered())
    options = {"temperature": 0, "num_predict": 6}
    found = asked.post("/api/chat", {"model": "tiny", "messages": HI, "stream": False, "options": options}).json()
    assert found["message"]["content"].strip() == text.strip()
    assert asked.post("/api/show", {"model": "tiny"}).json()["template"] == SOURCE
    counted = asked.post("/tokenize", {"model": "tiny", "messages": HI}).json()
    assert counted["count"] == asked.post("/tokenize", {"model": "tiny", "content": rendered()}).json()["count"]


def test_a_known_one_by_its_name(tiny_chat: Path) -> None:
    with running({"tiny": tiny_chat}, runtime=RuntimeConfig(template="chatml")) as server:
        of_chat, of_plain = answers(server, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        assert of_chat == of_plain
