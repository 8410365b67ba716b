"""Templates for files that have none, and for people who name one."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from edgellm.errors import FileProblem, TemplateError, UsageError
from edgellm.formats.gguf import GGUFFile
from edgellm.text import ChatTemplate, chosen_template, load_tokenizer
from edgellm.text.known_templates import KNOWN_TEMPLATES
from edgellm.text.vocabulary import TokenType

from . import oracles
from .test_chat_content import with_tokens
from .test_chat_template import SPECIAL, original

SYSTEM = {"role": "system", "content": "Be nice."}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "?"}]
# The originals, and whether they have the system's turn. Some begin with texts of their own, which ours leave out.
ORIGINALS = {
    "gemma": ("google-gemma-2-2b-it", False),
    "phi3": ("microsoft-Phi-3.5-mini-instruct", True),
    "mistral-v3-tekken": ("mistralai-Mistral-Nemo-Instruct-2407", False),
    "chatml": ("Qwen-Qwen2.5-7B-Instruct", True),
}


def vocabulary(*texts: str) -> dict[str, Any]:
    """A small vocabulary with some control tokens, and no others."""
    metadata = with_tokens(oracles.train_byte_level("gpt-2"), **dict.fromkeys(texts, TokenType.CONTROL))
    tokens = [text.decode() if isinstance(text, bytes) else text for text in metadata["tokenizer.ggml.tokens"]]
    others = [f"<|x{n}|>" if text.startswith("<|") and text not in texts else text for n, text in enumerate(tokens)]
    return metadata | {"tokenizer.ggml.tokens": others}


@pytest.mark.parametrize("name", ORIGINALS)
def test_they_render_as_the_originals(shared, name):
    file, takes_system = ORIGINALS[name]
    source = (shared / "templates" / f"{file}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(KNOWN_TEMPLATES[name].source, SPECIAL)
    for chat in ([SYSTEM, *TURNS], [SYSTEM, TURNS[0]]):
        chat = chat if takes_system else chat[1:]
        assert template.render(chat) == original(source, chat, True)


EXPECTED = {
    "llama2": "<s>[INST] <<SYS>>\nBe nice.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] ? [/INST]",
    "mistral-v1": "<s>[INST] Be nice.\n\nHi [/INST] Hello</s>[INST] ? [/INST]",
    "mistral": "<s>[INST] Be nice.\n\nHi[/INST] Hello</s>[INST] ?[/INST]",
    "mistral-v7-tekken": "<s>[SYSTEM_PROMPT]Be nice.[/SYSTEM_PROMPT][INST]Hi[/INST]Hello</s>[INST]?[/INST]",
    "zephyr": "<|system|>\nBe nice.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\n?</s>\n<|assistant|>\n",
    "vicuna": "<s>Be nice.\n\nUSER: Hi\nASSISTANT: Hello</s>\nUSER: ?\nASSISTANT:",
    "deepseek": "<s>Be nice.<｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>?<｜Assistant｜>",  # noqa: RUF001
    "phi4": "<|im_start|>system<|im_sep|>Be nice.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant"
    "<|im_sep|>Hello<|im_end|><|im_start|>user<|im_sep|>?<|im_end|><|im_start|>assistant<|im_sep|>",
    "gemma": "<s><start_of_turn>user\nBe nice.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\n?<end_of_turn>\n<start_of_turn>model\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe nice.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_written(name):
    metadata = vocabulary()
    source = chosen_template(metadata, load_tokenizer(metadata), name).source
    assert ChatTemplate(source, SPECIAL).render([SYSTEM, *TURNS]) == EXPECTED[name]


@pytest.mark.parametrize("name", KNOWN_TEMPLATES)
def test_every_one_writes_a_chat_and_keeps_what_is_said_apart(name):
    template = ChatTemplate(KNOWN_TEMPLATES[name].source, SPECIAL)
    prompt = template.render([SYSTEM, *TURNS])
    assert all(text in prompt for text in ("Be nice.", "Hi", "Hello", "?"))
    assert all(own for char, own in zip(prompt, prompt.own, strict=True) if char in "<[")
    assert prompt.startswith(template.render([SYSTEM, TURNS[0]])[:-1]) or name == "alpaca"


@pytest.mark.parametrize("name", [name for name, known in KNOWN_TEMPLATES.items() if known.tokens])
def test_each_is_recognised_by_its_tokens(name):
    known = KNOWN_TEMPLATES[name]
    metadata = vocabulary(*known.tokens)
    tokenizer = load_tokenizer(metadata)
    if name.startswith("mistral") and known.model is None:  # the tokens are those of another kind's
        tokenizer = SimpleNamespace(kind="llama", has_special=tokenizer.has_special, special_tokens={})
    template = chosen_template(metadata, tokenizer)
    assert template.source == known.source and template.is_guess
    assert name in template.origin and known.tokens[0] in template.origin


def test_ordinary_text_tells_nothing_and_the_files_own_comes_first():
    metadata = vocabulary("<|user|>")
    assert chosen_template(metadata, load_tokenizer(metadata)) is None
    metadata = vocabulary("<|im_start|>", "<|im_end|>") | {"tokenizer.chat_template": "own"}
    template = chosen_template(metadata, load_tokenizer(metadata))
    assert template.source == "own" and not template.is_guess


def test_a_base_model_stays_one(gemma3):
    with GGUFFile.open(gemma3) as file:
        tokenizer = load_tokenizer(file.metadata)
        assert chosen_template(file.metadata, tokenizer) is None
        assert chosen_template({**file.metadata, "tokenizer.ggml.eot_token_id": 106}, tokenizer) is not None
        assert chosen_template({**file.metadata, "general.name": "Gemma 3 270m It"}, tokenizer) is not None


def test_files_and_names(tmp_path):
    metadata = vocabulary() | {"tokenizer.chat_template.rag": "rag {{ documents }}", "tokenizer.chat_template": "own"}
    tokenizer = load_tokenizer(metadata)
    path = tmp_path / "my.jinja"
    path.write_text("\ufeffmine {{ messages[0].content }}", encoding="utf-8")
    assert chosen_template(metadata, tokenizer, str(path)).render(TURNS) == "mine Hi"
    assert chosen_template(metadata, tokenizer, "rag").source == "rag {{ documents }}"
    assert chosen_template(metadata, tokenizer, "{{ 1 + 1 }}").render(TURNS) == "2"
    with pytest.raises(UsageError, match="did you mean chatml"):
        chosen_template(metadata, tokenizer, "chatmi")
    with pytest.raises(FileProblem, match=re.escape(str(tmp_path))):
        chosen_template(metadata, tokenizer, str(tmp_path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileProblem, match="not UTF-8"):
        chosen_template(metadata, tokenizer, str(path))
    with pytest.raises(TemplateError, match="line 1"):
        chosen_template(metadata, tokenizer, "{% if %}")
