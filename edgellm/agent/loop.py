"""The loop of tools: an answer, the calls in it, their results, and so on until the model only says something."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgellm import checks
from edgellm.engine.tools import Tools
from edgellm.errors import EdgellmError, UsageError, shown

if TYPE_CHECKING:
    from edgellm.engine import Generation, Model
    from edgellm.text.calls import Call

MOST_ROUNDS = 8
LONGEST_RESULT = 100_000  # characters of a result that a model is given


@dataclass
class ToolRun:
    """What came of a conversation with tools.

    messages:   all of it: those that were given, then answers, calls and results.
    text:       what the model said at last.
    calls:      the calls that were made, each with its result.
    """

    messages: list[dict[str, Any]]
    text: str = ""
    calls: list[tuple[Call, str]] = field(default_factory=list)


def run_tools(
    model: Model,
    messages: Iterable[Mapping[str, Any]],
    tools: Iterable[Any],
    *,
    call: Callable[[Call], Any] | None = None,
    confirm: Callable[[Call], bool] | None = None,
    on_answer: Callable[[Generation], None] | None = None,
    max_rounds: int = MOST_ROUNDS,
    **keywords: Any,
) -> ToolRun:
    """Answer messages, making the calls that the model asks for, and giving it their results.

    tools:       Python functions, or schemas as OpenAI has them, which `call` makes.
    call:        makes a call that is no function's, and gives its result: a text, or a value that becomes JSON.
    confirm:     is asked before each call; False refuses it, and the model is told.
    on_answer:   is given each answer before it begins, to show it as it comes. What it leaves is read afterwards.
    max_rounds:  answers that may ask for calls; the one after them has to do without.
    keywords:    those of `Model.chat`.

    What a tool raises is told to the model, as a result. Raises UsageError for a tool that nobody can call.
    """
    known = Tools(tools)
    rounds = checks.whole_number("max_rounds", max_rounds, 1)
    for name in known.arguments:
        if name not in known.functions and call is None:
            raise UsageError(
                f"tools holds the schema of {name}, and nothing that calls it; give call", parameter="tools"
            )
    run = ToolRun([dict(message) for message in messages])
    choice = keywords.pop("tool_choice", "auto")
    for n in range(rounds + 1):
        # A call that must come, must come once.
        chosen = "none" if n == rounds else choice if n == 0 else "auto"
        answer = model.chat(run.messages, tools=known.schemas, tool_choice=chosen, **keywords)
        if on_answer is not None:
            on_answer(answer)
        for _ in answer:
            pass
        run.messages.append(answer.message)
        run.text = answer.content
        if not answer.tool_calls:
            break
        for asked in answer.tool_calls:
            result = _result(asked, known, call, confirm)
            run.calls.append((asked, result))
            run.messages.append({"role": "tool", "tool_call_id": asked.id, "name": asked.name, "content": result})
    return run


def _result(
    asked: Call, known: Tools, call: Callable[[Call], Any] | None, confirm: Callable[[Call], bool] | None
) -> str:
    if confirm is not None and not confirm(asked):
        return "error: the user refused this call"
    function = known.functions.get(asked.name)
    try:
        if function is not None:
            value = function(**asked.arguments)
        else:
            assert call is not None
            value = call(asked)
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise UsageError(f"{asked.name} is an async function; give one that returns its result", parameter="tools")
    except UsageError as problem:
        if problem.parameter == "tools":
            raise
        return f"error: {problem}"
    except EdgellmError as problem:
        return f"error: {problem}"
    except Exception as problem:  # whatever a tool may run into
        return f"error: {type(problem).__name__}: {problem}"
    return _as_text(asked.name, value)


def _as_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, default=_plain)
        except (TypeError, ValueError, RecursionError):
            value = f"error: {name} gave {shown(value)}, which has no form in JSON"
    if len(value) > LONGEST_RESULT:
        return f"{value[:LONGEST_RESULT]}\n(the rest of {len(value)} characters is left out)"
    return str(value)


def _plain(value: Any) -> Any:
    import dataclasses

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    return str(value)
