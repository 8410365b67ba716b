"""The options of `edgellm run` for thoughts and tools."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgellm.cli.options import checked_by
from edgellm.dataclass import dataclass
from edgellm.errors import UsageError
from edgellm.params import ChatParams

if TYPE_CHECKING:
    from edgellm.agent.mcp import McpServers
    from edgellm.cli.asker import Asker
    from edgellm.engine import Model

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Asking:
    """What was typed. mcp: the file that names the servers."""

    think: bool | None = None
    think_budget: int | None = None
    hide_thoughts: bool = False
    mcp: str | None = None

    @contextmanager
    def servers(self) -> Iterator[McpServers | None]:
        """The MCP servers, while they are needed; what is wrong with them is told. None where there are none."""
        ChatParams(think=self.think, think_budget=self.think_budget)
        if self.mcp is None:
            yield None
            return
        from edgellm.agent.mcp import McpServers, read_config
        from edgellm.cli.terminal import note

        with McpServers(read_config(self.mcp)) as servers:
            for problem in servers.problems:
                note(problem)
            if not servers.tools:
                note(f"{self.mcp}: no MCP server offers a tool")
            yield servers

    def asker(self, model: Model, raw: bool, servers: McpServers | None) -> Asker:
        """Raises UsageError for what needs a chat template where there is none."""
        from edgellm.cli.asker import Asker

        for name in ("mcp", "think", "think_budget"):
            value = getattr(self, name)
            if value is not None and value is not False and (raw or model.chat_template is None):
                why = "--raw uses no chat template" if raw else f"{model.path.name} has no chat template (a base model)"
                raise UsageError(f"--{name.replace('_', '-')} cannot be used: {why}")
        return Asker(model, self.think, self.think_budget, self.hide_thoughts, servers)


def asking_options(command: Command) -> Command:
    """Give a command --think, --think-budget, --hide-thoughts and --mcp; it receives them as `asking`."""

    @functools.wraps(command)
    def with_asking(**typed: Any) -> Any:
        asking = Asking(**{field.name: typed.pop(field.name) for field in fields(Asking)})
        return command(asking=asking, **typed)

    thinks = "Whether the model thinks before it answers, if it can."
    budget = "Tokens of a thought at most."
    servers = "Let the model call tools of the MCP servers that FILE names; you are asked before each call."
    check = checked_by(ChatParams)
    found = click.option("--mcp", metavar="FILE", help=servers)(with_asking)
    found = click.option("--hide-thoughts", is_flag=True, help="Do not show what the model thinks.")(found)
    found = click.option("--think-budget", type=int, metavar="N", help=budget, callback=check)(found)
    return click.option("--think/--no-think", default=None, help=thinks)(found)  # type: ignore[return-value]
