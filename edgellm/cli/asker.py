"""Asking a model from a terminal: with thoughts, and with tools of MCP servers, whose calls a person confirms."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgellm.cli.screen.thoughts import ThoughtView
from edgellm.cli.terminal import asking_keyboard, one_line, remark
from edgellm.errors import EdgellmError, UsageError

if TYPE_CHECKING:
    from edgellm.agent.mcp import McpServers
    from edgellm.engine import Generation, GenerationStats, Model
    from edgellm.text.calls import Call

MOST_ROUNDS = 8
_LOOK_SECONDS = 0.2


class Asker:
    """Gives answers as `Model.chat` does, with what was said of thoughts and tools once for all.

    think, think_budget:  as for `Model.chat`.
    hides_thoughts:       nobody wants to see them.
    servers:              whose tools the model may call.
    """

    def __init__(
        self,
        model: Model,
        think: bool | None = None,
        think_budget: int | None = None,
        hides_thoughts: bool = False,
        servers: McpServers | None = None,
    ) -> None:
        self._model = model
        self.servers = servers
        # Where a person sits; nothing else than the answer goes into a pipe.
        shows_thoughts = not hides_thoughts and sys.stdout.isatty() and sys.stderr.isatty()
        self.thoughts = ThoughtView() if shows_thoughts else None
        self.think, self._think_budget = think, think_budget
        self.allowed: set[str] = set()  # tools that the person has said yes to once for all

    def chat(self, messages: list[dict[str, Any]], **sampling: Any) -> Any:
        """The answer to some messages: what `Model.chat` gives, or a `ToolAnswer` that does the same."""
        wishes = self._wishes
        if not self.servers and not wishes and getattr(self._model.chat_template, "reasoning", None) is None:
            return self._model.chat(messages, **sampling)
        return ToolAnswer(self, messages, {**sampling, **wishes})

    @property
    def _wishes(self) -> dict[str, Any]:
        budget = None if self.think is False else self._think_budget
        return {name: wish for name, wish in (("think", self.think), ("think_budget", budget)) if wish is not None}

    def set_think(self, think: bool | None) -> None:
        """Raises UsageError for a model that cannot think."""
        if think and getattr(self._model.chat_template, "reasoning", None) is None:
            raise UsageError("think cannot be on: this model's chat template knows of no thoughts")
        self.think = think

    def begin(self, messages: list[dict[str, Any]], may_call: bool, keywords: dict[str, Any]) -> Generation:
        if self.tools:
            choice = "auto" if may_call else "none"
            return self._model.chat(messages, tools=self.tools, tool_choice=choice, **keywords)
        return self._model.chat(messages, **keywords)

    @property
    def tools(self) -> list[dict[str, Any]]:
        """Those that the prompt tells of."""
        return self.servers.tools if self.servers is not None else []

    def result_of(self, call: Call, is_cancelled: Any) -> str:
        """Make a call, if that is allowed. What goes wrong is told to the person and to the model."""
        assert self.servers is not None
        line = one_line(f"{self.servers.server_of(call.name)}: {call.name}({_shown(call.arguments)})")
        if self.servers.needs_confirming(call.name) and call.name not in self.allowed:
            said = _ask(f"call {line}? [y]es, [a]lways, [n]o: ", is_cancelled)
            if said.startswith("a"):
                self.allowed.add(call.name)
            elif not said.startswith("y"):
                remark(f"not called: {line}")
                return "error: the user refused this call"
        else:
            remark(f"calling {line}")
        try:
            return self.servers.call(call)
        except EdgellmError as problem:
            remark(str(problem))
            return f"error: {problem}"


class ToolAnswer:
    """An answer over several rounds: what the model says, the calls that it asks for, what it says to their results.

    It is iterated over as a `Generation` is; thoughts are shown on the way.

    aside:  is called before something else than the answer is shown.
    """

    aside: Callable[[], None]

    def __init__(self, asker: Asker, messages: list[dict[str, Any]], keywords: dict[str, Any]) -> None:
        self._asker, self._keywords = asker, keywords
        self.aside = lambda: None
        self._messages = list(messages)
        self._is_cancelled = False
        self._now = asker.begin(self._messages, True, keywords)

    @property
    def finish_reason(self) -> str | None:
        return "cancelled" if self._is_cancelled else self._now.finish_reason

    @property
    def stats(self) -> GenerationStats:
        """Of the last round."""
        return self._now.stats

    @property
    def n_prompt_done(self) -> int:
        return int(getattr(self._now, "n_prompt_done", 0))

    @property
    def text_ids(self) -> list[int]:
        """What the context holds."""
        return self._now.text_ids

    def cancel(self) -> None:
        self._is_cancelled = True
        self._now.cancel()

    def __iter__(self) -> Iterator[str]:
        for n in range(MOST_ROUNDS + 1):
            yield from self._round()
            if self._is_cancelled or not self._now.tool_calls:
                return
            self._messages.append(self._now.message)
            self.aside()
            for call in self._now.tool_calls:
                result = self._asker.result_of(call, lambda: self._is_cancelled)
                self._messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result})
                if self._is_cancelled:
                    return
            self._now = self._asker.begin(self._messages, n + 1 < MOST_ROUNDS, self._keywords)

    def _round(self) -> Iterator[str]:
        thoughts, thinks = self._asker.thoughts, False
        for piece in self._now.pieces():
            if thoughts and piece.kind == "reasoning":
                if not thinks:
                    self.aside()
                thoughts.show(piece.text)
            elif thoughts and thinks:
                thoughts.end()
            thinks = piece.kind == "reasoning"
            if piece.kind == "content":
                yield piece.text
        if thoughts and thinks:
            thoughts.end()


def _shown(arguments: dict[str, Any]) -> str:
    import json

    text = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return text if len(text) <= 500 else f"{text[:497]}..."


def _ask(question: str, is_cancelled: Any) -> str:
    """What a person says to a question; no is what nobody says."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "n"
    with asking_keyboard():
        sys.stderr.write(question)
        sys.stderr.flush()
        if sys.platform != "win32":
            while not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
                if is_cancelled():
                    sys.stderr.write("\n")
                    return "n"
        try:
            return sys.stdin.readline().strip().lower()
        except (OSError, UnicodeError):
            return "n"
