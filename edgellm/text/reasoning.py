"""How a model's thoughts are told from its answer, as its chat template shows.

A template gives it away in one of four ways: it writes the reasoning of a message, it strips it from earlier answers,
it puts an empty thought in front of an answer that is to have none, or it tells the model of the marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgellmError
from edgellm.text.calls.arguments import common_start

if TYPE_CHECKING:
    from edgellm.text.chat_template import ChatTemplate

SWITCHES = ("enable_thinking", "thinking")  # variables by which templates turn it on or off
THOUGHT, ANSWER = "zqthoughtqz", "zqanswerqz"
_QUESTION = {"role": "user", "content": "zqquestionqz"}
_TAG = r"<[^<>\s]+>|\[[A-Z_/]+\]"
_WORDS = "think|thinking|thought|thoughts|reason|reasoning|reflection"
_CLOSING = re.compile(r"</[\w:-]+>|\[/[A-Z_]+\]|<\|?[\w:]*(?:END|end)[\w:]*(?:THINK|think|thought)\w*\|?>")


@dataclass(frozen=True)
class Reasoning:
    """The marks of a thought: start THOUGHT end lead answer_start ANSWER.

    lead:          what follows a thought, whatever comes then; often nothing.
    answer_start:  what stands before an answer, with a thought or without one; often nothing.
    switches:      the variables that turn thoughts on and off.
    """

    start: str
    end: str
    lead: str = ""
    answer_start: str = ""
    switches: tuple[str, ...] = ()

    def is_open(self, prompt: str) -> bool:
        """Whether a prompt ends within a thought."""
        return prompt.rstrip().endswith(self.start)

    def is_over(self, prompt: str) -> bool:
        """Whether a prompt ends with a thought that is over, so that the answer comes next."""
        return prompt.rstrip().endswith(self.end)


def derived_reasoning(template: ChatTemplate) -> Reasoning | None:
    """None for a template that knows of no thoughts."""
    prompt = _rendered(template, [_QUESTION], add_generation_prompt=True) or ""
    marks = _written(template, prompt) or next(_others(template), None)
    if marks is None:
        return None
    start, end, lead = marks
    answer_start = _answer_start(template, prompt)
    if end in answer_start:  # an empty thought
        answer_start = ""
    lead = lead.removesuffix(answer_start) if answer_start else lead
    return Reasoning(start, end, lead, answer_start, tuple(_switches(template)))


def _written(template: ChatTemplate, prompt: str) -> tuple[str, str, str] | None:
    """The marks that the template itself writes around the reasoning of the last message."""
    message = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    full = _rendered(template, [_QUESTION, message]) or ""
    before, found, after = full.partition(THOUGHT)
    between, answered, _ = after.partition(ANSWER)
    if not (found and answered) or not between.strip():
        return None
    start = before[len(common_start(prompt, before)) :].strip()
    if not start:  # the prompt has begun the thought
        tags = re.findall(_TAG, prompt)
        start = tags[-1] if tags else ""
    tag = re.match(rf"\s*({_TAG})", between)
    end = tag[1] if tag else between.strip()
    return (start, end, between.strip()[len(end) :].strip()) if start else None


def _others(template: ChatTemplate) -> Iterator[tuple[str, str, str]]:
    for end in dict.fromkeys(_CLOSING.findall(template.source)):
        said = {"role": "assistant", "content": f"{THOUGHT}{end}{ANSWER}"}
        earlier = _rendered(template, [_QUESTION, said, _QUESTION])
        if earlier is not None and THOUGHT not in earlier and ANSWER in earlier:
            yield _opening(end), end, ""
    for switch in SWITCHES:
        off = _rendered(template, [_QUESTION], add_generation_prompt=True, **{switch: False}) or ""
        if empty := re.search(r"(<(\w+)>)\s*(</\2>)\s*$", off):
            yield empty[1], empty[3], ""
    if told := re.search(rf"<({_WORDS})>(?s:.*?)</\1>", template.source):
        yield f"<{told[1]}>", f"</{told[1]}>", ""


def _opening(end: str) -> str:
    if "/" in end:
        return end.replace("/", "", 1)
    return end.replace("END", "START").replace("end", "begin")


def _answer_start(template: ChatTemplate, prompt: str) -> str:
    full = _rendered(template, [_QUESTION, {"role": "assistant", "content": ANSWER}]) or ""
    before, found, _ = full.partition(ANSWER)
    rest = before[len(common_start(prompt, before)) :].strip()
    return rest if found and re.fullmatch(rf"(?:{_TAG}|\w)+", rest) else ""


def _switches(template: ChatTemplate) -> Iterator[str]:
    for switch in SWITCHES:
        prompts = {
            _rendered(template, [_QUESTION], add_generation_prompt=True, **{switch: flag}) for flag in (True, False)
        }
        if len(prompts) > 1:
            yield switch


def _rendered(
    template: ChatTemplate, messages: list[dict[str, Any]], add_generation_prompt: bool = False, **extra: Any
) -> str | None:
    render: Callable[..., str] = template.render
    try:
        return str(render(messages, add_generation_prompt, **extra))
    except EdgellmError:
        return None
