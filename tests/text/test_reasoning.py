"""Thoughts, as templates mark them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.text.chat_template import ChatTemplate
from edgellm.text.reasoning import Reasoning

ASK = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TEMPLATES = {
    "none": (ASK + BEGIN, None),
    # It strips what it finds in earlier answers, and begins the thought itself.
    "stripped": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
        Reasoning("<think>", "</think>"),
    ),
    "other brackets": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('[/THINK]')[-1] }}{% endfor %}" + BEGIN,
        Reasoning("[THINK]", "[/THINK]"),
    ),
    # It puts an empty thought in front of an answer that is to have none.
    "empty": (
        ASK + "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}<reason>\n\n</reason>"
        "{% endif %}{% endif %}",
        Reasoning("<reason>", "</reason>", switches=("enable_thinking",)),
    ),
    # It writes the thought of a message.
    "written": (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<seed:think>{{ m.reasoning_content }}"
        "</seed:think>{% endif %}{{ m.content }}{% endfor %}" + BEGIN,
        Reasoning("<seed:think>", "</seed:think>"),
    ),
    "channels": (
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}{% if m.thinking %}"
        "<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}<|channel|>final<|message|>"
        "{% else %}<|message|>{% endif %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        Reasoning("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant", "<|channel|>final<|message|>"),
    ),
    # It tells the model of the marks.
    "told": (
        "{% if thinking %}Think between <thinking></thinking>.{% endif %}" + ASK + BEGIN,
        Reasoning("<thinking>", "</thinking>", switches=("thinking",)),
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_marks(name: str) -> None:
    source, expected = TEMPLATES[name]
    assert ChatTemplate(source).reasoning == expected


def test_a_prompt_within_a_thought() -> None:
    template = ChatTemplate(TEMPLATES["stripped"][0])
    prompt = template.render([{"role": "user", "content": "?"}])
    assert template.reasoning is not None
    assert template.reasoning.is_open(prompt) and not template.reasoning.is_over(prompt)


def test_templates_of_models(shared: Path) -> None:
    found = {}
    for path in sorted((shared / "templates").glob("*.jinja")):
        reasoning = ChatTemplate(path.read_text("utf-8"), {"bos_token": "<s>", "eos_token": "</s>"}).reasoning
        if reasoning is not None:
            found[path.stem.partition("-")[2]] = (reasoning.start, reasoning.end, reasoning.switches)
    think = ("<think>", "</think>")
    assert found == {
        "SmolLM3-3B": (*think, ("enable_thinking",)),
        "Qwen3-0.6B": (*think, ("enable_thinking",)),
        "ai-DeepSeek-R1-Distill-Llama-8B": (*think, ()),
        "granite-granite-3.3-2B-Instruct": (*think, ("thinking",)),
        "gpt-oss-120b": ("<|channel|>analysis<|message|>", "<|end|>", ()),
    }
