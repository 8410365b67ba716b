"""What a chat asks for beside its messages: tools, thoughts, a structure. From that come the prompt and a plan."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

from edgellm.engine.answer_form import AnswerForm
from edgellm.engine.answer_plan import AnswerPlan
from edgellm.engine.continuing import Begun, begun_by, check_wishes, continues, prompt_from, without_thought
from edgellm.engine.sampling.thought_budget import ThoughtBudget
from edgellm.engine.structure.asked import asked_of
from edgellm.engine.structure.constraint import Constraint
from edgellm.engine.structure.whole_answer import of_answer
from edgellm.engine.tools import Tools, filled
from edgellm.errors import TemplateError, UsageError
from edgellm.params import ChatParams, SamplingParams
from edgellm.text import ChatTemplate, Tokenizer
from edgellm.text.calls import CallSyntax
from edgellm.text.calls.plain import PLAIN, told_in_text
from edgellm.text.messages import holds_calls, plain_messages
from edgellm.text.reasoning import Reasoning


def plan_of_text(params: SamplingParams, tokenizer: Tokenizer, n_vocab: int) -> AnswerPlan:
    """For an answer without a template."""
    asked = asked_of(params)
    if asked is None:
        return AnswerPlan()
    is_json = asked.name == "response_format"
    return AnswerPlan(constraint=Constraint.of(asked, tokenizer, n_vocab), is_json=is_json)


def plan_of_chat(
    template: ChatTemplate,
    messages: list[Any],
    variables: Mapping[str, Any],
    wishes: ChatParams,
    params: SamplingParams,
    tokenizer: Tokenizer,
    n_vocab: int,
) -> tuple[str, AnswerPlan]:
    """The prompt of a chat, and what its answer is to be like. Raises UsageError, TemplateError."""
    asked = _asked(template, messages, variables, wishes)
    reasoning, prompt, begun = template.reasoning, asked.prompt, asked.begun
    form = None
    if reasoning is not None or asked.syntax is not None:
        if begun is not None and not begun.is_empty:  # the prompt ends with a text that may be anything
            is_open, is_over = begun.text is None, begun.text is not None
        else:
            is_open = reasoning is not None and reasoning.is_open(prompt)
            is_over = reasoning is not None and (asked.think is False or _is_over(prompt, reasoning))
        one_call = wishes.parallel_tool_calls is False
        is_begun = begun is not None and bool(begun.text)
        form = AnswerForm(reasoning, is_open, is_over, asked.syntax, asked.arguments, one_call, is_begun)
    return prompt, _plan(form, asked.calls, wishes, params, tokenizer, n_vocab)


def prompt_of_chat(
    template: ChatTemplate, messages: list[Any], variables: Mapping[str, Any], wishes: ChatParams
) -> str:
    """The prompt alone."""
    return _asked(template, messages, variables, wishes).prompt


class _Asked(NamedTuple):
    """The prompt of a chat, and what it says of calls and thoughts.

    calls, arguments:  see `Tools.chosen`. think: as it was asked for.
    begun:  what the last message has begun of the answer.
    """

    prompt: str
    syntax: CallSyntax | None
    calls: str
    arguments: Mapping[str, Any]
    think: bool | None
    begun: Begun | None


def _asked(template: ChatTemplate, messages: list[Any], variables: Mapping[str, Any], wishes: ChatParams) -> _Asked:
    tools = Tools(() if wishes.tools is None else wishes.tools)
    if not tools.schemas and wishes.tool_choice not in (None, "auto", "none"):
        raise UsageError("tool_choice asks for a call, but there are no tools; give some", parameter="tool_choice")
    calls, arguments = tools.chosen(wishes.tool_choice) if tools.schemas else ("none", {})
    reasoning = template.reasoning
    think = False if wishes.think_budget == 0 else wishes.think
    _check_thoughts(reasoning, wishes)
    begun = begun_by(messages, reasoning) if continues(messages, wishes.continue_final_message) else None
    if begun is not None:
        check_wishes(begun, wishes)
        think = True if begun.text is None else think
    variables = dict(variables)
    if reasoning is not None and think is not None:
        variables.update(dict.fromkeys(reasoning.switches, think))
    syntax = None
    if calls != "none":
        syntax = PLAIN if template.call_syntax is None else template.call_syntax

    def write(some: list[Any], prompts: bool) -> str:
        told = {**variables, "add_generation_prompt": prompts}
        if calls != "none" or holds_calls(some):
            return prompt_with_tools(template, some, tools if calls != "none" else Tools(()), told)[0]
        return template.render(some, **told)

    if begun is not None and not begun.is_empty:
        return _Asked(prompt_from(begun, reasoning, write), syntax, calls, arguments, think, begun)
    prompt = write(messages if begun is None else begun.before, True)
    if reasoning is not None and think is False:
        prompt = without_thought(prompt, reasoning)
    return _Asked(prompt, syntax, calls, arguments, think, begun)


def prompt_with_tools(
    template: ChatTemplate, messages: list[Any], tools: Tools, variables: Mapping[str, Any]
) -> tuple[str, CallSyntax]:
    """The prompt that tells of tools, and how they are to be called: by the template, or else in plain text.

    A template is told no more than it needs to be told: no list where there are no tools, unless it wants an empty one.
    """
    syntax = template.call_syntax
    if syntax is None:
        told = told_in_text(plain_messages(messages), tools.schemas, template.takes_system)
        return template.render(told, **variables), PLAIN
    with suppress(TemplateError):
        return template.render(messages, tools=tools.schemas or None, **variables), syntax
    return template.render(messages, tools=[filled(tool) for tool in tools.schemas], **variables), syntax


def _plan(
    form: AnswerForm | None, calls: str, wishes: ChatParams, params: SamplingParams, tokenizer: Tokenizer, n_vocab: int
) -> AnswerPlan:
    asked = asked_of(params)
    is_json = asked is not None and asked.name == "response_format" and calls == "none"
    is_json = is_json and (form is None or form.reasoning is None or form.is_over)
    if form is not None and (asked is not None or calls == "required" or find_spec("llguidance") is not None):
        asked = of_answer(form, asked, calls, tokenizer)
    constraint = None if asked is None else Constraint.of(asked, tokenizer, n_vocab)
    if form is None:
        return AnswerPlan(constraint=constraint, is_json=is_json)
    form = replace(form, is_sure=constraint is not None)
    budget = None
    if wishes.think_budget and form.reasoning is not None and not form.is_over:
        start = b"" if form.is_open else form.reasoning.start.encode()
        end = tokenizer.encode_inside(form.reasoning.end, parse_special=True)
        budget = ThoughtBudget(wishes.think_budget, start, end, tokenizer.name_bytes)
    shows = frozenset(i for mark in form.marks for i in tokenizer.with_control(mark) if isinstance(i, int))
    ids = frozenset(i for mark in form.marks for i in tokenizer.encode(mark, parse_special=True))
    return AnswerPlan(form, constraint, budget, is_json, (shows | ids) & frozenset(tokenizer.control_ids))


def _check_thoughts(reasoning: Reasoning | None, wishes: ChatParams) -> None:
    if reasoning is None:
        for name, wanted in (("think", wishes.think), ("think_budget", wishes.think_budget)):
            if wanted:
                told = "asks for a thought" if wanted is True else f"is {wanted}"
                raise UsageError(
                    f"{name} {told}, but this model's chat template knows of no thoughts; leave {name} out",
                    parameter=name,
                )


def _is_over(prompt: str, reasoning: Reasoning) -> bool:
    is_started = bool(reasoning.answer_start) and prompt.endswith(reasoning.answer_start)
    return is_started or reasoning.is_over(prompt)
