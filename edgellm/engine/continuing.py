"""A chat whose last message is the assistant's: the answer goes on from that text.

The prompt is then what the template writes for such a message, up to its text, which is put behind it as it is. Two
renderings tell what that is: the prompt for the messages before, and the whole chat with a word in the place of the
text. The second has what stands in front of an answer (a space, an empty thought, the name of a channel). Where it is
no continuation of the first, for the template says something else when nobody has to answer, the first is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from edgellm.errors import TemplateError, UsageError
from edgellm.params import ChatParams
from edgellm.text.calls.arguments import common_start
from edgellm.text.messages import ASSISTANTS, REASONING, joined_parts, plain, plain_messages
from edgellm.text.provenance import Text, add, cut, own_of, written
from edgellm.text.reasoning import ANSWER, Reasoning

NAME = "continue_final_message"
OPENING = re.compile(r"<[^<>\s/]+>")  # of a thought, in a template of which not more can be told

Write = Callable[[list[Any], bool], str]
"""The rendering of messages, with or without what an answer begins with."""


class Begun(NamedTuple):
    """What an answer has begun with.

    before:   the messages that it answers. last: the message that it is in, without its text and its thought.
    thought:  None where there is none. text: None where the answer is still within its thought.
    """

    before: list[Any]
    last: dict[str, Any]
    thought: str | None
    text: str | None

    @property
    def is_empty(self) -> bool:
        """Nothing has been said yet."""
        return self.text == "" and self.thought is None


def continues(messages: list[Any], wish: bool | None) -> bool:
    """Whether the last message is to be gone on with: it is, if an assistant says something there, unless told not to.

    A message that calls tools is whole, for results come next. Raises UsageError where it is wished and cannot be.
    """
    last = plain(messages[-1]) if messages else None
    role = last.get("role") if isinstance(last, dict) else None
    is_text = role in ASSISTANTS and not (isinstance(last, dict) and last.get("tool_calls"))
    if wish and not is_text:
        what = "calls tools" if role in ASSISTANTS else f"is of the role {str(role)[:40]!r}"
        raise UsageError(
            f"the answer is to go on from the last message ({NAME}), which {what}; expected a text of the assistant "
            "there, or an answer that begins anew",
            parameter=NAME,
        )
    return is_text and wish is not False


def begun_by(messages: list[Any], reasoning: Reasoning | None) -> Begun | None:
    """What the last message begins; None where it says nothing. Raises UsageError for what is no message, and for a
    thought where the template knows of none.
    """
    (last,) = joined_parts(plain_messages(messages)[-1:])
    content = last.get("content", "")
    if reasoning is None and not content and last.get("reasoning_content"):
        raise UsageError(
            "the last message holds a thought (reasoning_content) and no content, so the answer is to go on from the "
            "thought, but this model's chat template knows of no thoughts; leave the message out, or give it a content",
            parameter="reasoning_content",
        )
    if not isinstance(content, str):  # of a kind that only its template knows
        return None
    thought, text = _told_apart(last, content, reasoning)
    rest = {name: value for name, value in last.items() if name not in ("content", *REASONING)}
    begun = Begun(messages[:-1], rest, thought, text)
    return None if begun.is_empty and not begun.before else begun


def _told_apart(last: Mapping[str, Any], content: str, reasoning: Reasoning | None) -> tuple[str | None, str | None]:
    """Thought and text of a message, whose thought may stand in its content, with the marks around it."""
    if reasoning is None:
        return None, content
    if thought := last.get("reasoning_content"):
        return str(thought), content or None
    if not content.lstrip().startswith(reasoning.start):
        return None, content
    thought, is_over, text = content.lstrip()[len(reasoning.start) :].partition(reasoning.end)
    if not is_over:
        return thought.lstrip("\n"), None
    return thought.strip() or None, text.lstrip("\n")


def check_wishes(begun: Begun, wishes: ChatParams) -> None:
    """Raises UsageError for a thought that comes too late, or that is begun and not wished for."""
    for name in ("think", "think_budget"):
        if begun.text and begun.thought is None and getattr(wishes, name):
            raise UsageError(
                f"{name} is {getattr(wishes, name)}, but the last message has begun the answer, and a thought comes "
                f"before it; leave {name} out, or give the thought with the message",
                parameter=name,
            )
    if begun.text is None and (wishes.think is False or wishes.think_budget == 0):
        name = "think" if wishes.think is False else "think_budget"
        raise UsageError(
            f"{name} is {getattr(wishes, name)}, but the last message has begun a thought; leave one of them out",
            parameter=name,
        )


def prompt_from(begun: Begun, reasoning: Reasoning | None, write: Write) -> str:
    """The prompt up to where the answer has come. Raises TemplateError."""
    if begun.text is None:
        assert reasoning is not None
        return _behind(_within_thought(write(begun.before, True), reasoning), begun.thought or "")
    return _behind(_in_front(begun, reasoning, write), begun.text)


def _in_front(begun: Begun, reasoning: Reasoning | None, write: Write) -> str:
    """What stands before the text of an answer."""
    said = {**begun.last, "content": ANSWER}
    if begun.thought is not None:
        said["reasoning_content"] = begun.thought
    asked = _or_error(write, begun.before, True)
    head = _or_error(write, [*begun.before, said], False)
    if isinstance(head, str) and ANSWER in head:
        head = cut(head, 0, head.rindex(ANSWER))
        if not isinstance(asked, str) or _leads_to(asked, head, begun, reasoning):
            return without_thought(head, reasoning) if reasoning is not None and reasoning.is_open(head) else head
    if not isinstance(asked, str):
        raise asked
    if reasoning is None or begun.thought is None:
        return asked if reasoning is None else without_thought(asked, reasoning)
    told = _behind(_within_thought(asked, reasoning), begun.thought)
    return add(told, written(_gap(reasoning) + reasoning.end + reasoning.lead + reasoning.answer_start
                             + 2 * _gap(reasoning)))  # fmt: skip


def _leads_to(asked: str, head: str, begun: Begun, reasoning: Reasoning | None) -> bool:
    """Whether what stands before an answer goes on from the prompt for one, but for a thought that is not begun."""
    n = len(common_start(asked, head))
    rest = asked[n:].strip()
    is_thought = OPENING.fullmatch(rest) is not None if reasoning is None else rest == reasoning.start
    if rest and not is_thought:
        return False
    return begun.thought is None or begun.thought.strip() in head[n:]


def _within_thought(prompt: str, reasoning: Reasoning) -> str:
    if reasoning.is_open(prompt):
        return prompt
    return add(prompt, written(reasoning.start + _gap(reasoning)))


def _gap(reasoning: Reasoning) -> str:
    """Between a mark and a thought. Templates with marks for the answer too need none."""
    return "" if reasoning.lead or reasoning.answer_start else "\n"


def without_thought(prompt: str, reasoning: Reasoning) -> str:
    """A prompt after which the answer itself comes."""
    if reasoning.is_over(prompt):
        return prompt
    if reasoning.is_open(prompt):
        return add(prompt, written(f"\n{reasoning.end}\n\n"))
    if reasoning.answer_start:
        return add(prompt, written(reasoning.answer_start))
    if reasoning.switches:  # the template has seen to it
        return prompt
    return add(prompt, written(f"{reasoning.start}\n\n{reasoning.end}\n\n"))


def _or_error(write: Write, messages: list[Any], prompts: bool) -> str | TemplateError:
    """A rendering, or why there is none: some templates take no chat that begins, or ends, with an answer."""
    try:
        return write(messages, prompts)
    except TemplateError as error:
        return error


def _behind(prompt: str, text: str) -> str:
    """A prompt with a text of the chat behind it, whose characters are no control tokens."""
    return Text(prompt + text, own_of(prompt) + own_of(text))
