"""Servers that offer tools over the Model Context Protocol (modelcontextprotocol.io), as programs of this machine.

Each server is a program that is talked to through its standard input and output, by the official package `mcp`, in a
thread of its own. One that dies, hangs or says nonsense is an error of one line; the others go on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import re
import threading
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm import checks
from edgellm.engine.tools import check_tool
from edgellm.errors import EdgellmError, FormatError, UsageError, shown
from edgellm.text.calls import Call

START_SECONDS = 30.0
CALL_SECONDS = 60.0
LARGEST_CONFIG = 1 << 20  # bytes
MOST_TOOLS = 128  # of one server
KNOWN_KEYS = ("command", "args", "env", "cwd", "timeout", "allow", "type", "disabled")


class ServerError(EdgellmError):
    """A server of tools does not start, has died, or does not answer."""


@dataclass(frozen=True)
class ServerConfig:
    """How a server is started. allow: names of tools that need not be confirmed; True is all of them."""

    name: str
    command: str
    args: list[str] = field(default_factory=list)
    env: dict[str, str] | None = None
    cwd: str | None = None
    timeout: float = CALL_SECONDS
    allow: bool | list[str] = False


def read_config(path: str | os.PathLike[str]) -> list[ServerConfig]:
    """The servers of a file {"mcpServers": {NAME: {"command": ..., "args": [...]}}}.

    Raises FormatError for a file that is no such, OSError for one that cannot be read.
    """
    file = checks.path("mcp", path)
    data = file.read_bytes()[: LARGEST_CONFIG + 1]
    expected = 'expected {"mcpServers": {"NAME": {"command": "...", "args": [...]}}}'
    try:
        servers = json.loads(data.decode("utf-8-sig"))["mcpServers"]
        if len(data) > LARGEST_CONFIG or not isinstance(servers, Mapping):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{file}: no configuration of MCP servers; {expected}") from None
    found = [_server(file, name, value) for name, value in servers.items()]
    return [config for config in found if config is not None]


def _server(file: Path, name: str, value: Any) -> ServerConfig | None:
    def wrong(key: str, what: str) -> FormatError:
        given = value.get(key) if isinstance(value, Mapping) else value
        return FormatError(f"{file}: the server {name!r:.60} has {key} = {shown(given)}; expected {what}")

    if not isinstance(value, Mapping):
        raise wrong("its entry", "a dict with a command")
    if value.get("disabled") is True:
        return None
    if "url" in value or value.get("type", "stdio") != "stdio":
        raise FormatError(f"{file}: the server {name!r:.60} is one of a network; edgellm starts programs (command)")
    for key in value:
        if key not in KNOWN_KEYS:
            raise FormatError(
                f"{file}: the server {name!r:.60} has the key {key!r:.40}; expected {', '.join(KNOWN_KEYS)}"
            )
    command, args, env = value.get("command"), value.get("args", []), value.get("env")
    if not isinstance(command, str) or not command:
        raise wrong("command", "the name of a program")
    if not (isinstance(args, list) and all(isinstance(arg, str) for arg in args)):
        raise wrong("args", "a list of texts")
    if env is not None and not (isinstance(env, Mapping) and all(isinstance(v, str) for v in env.values())):
        raise wrong("env", "texts by name")
    timeout, allow = value.get("timeout", CALL_SECONDS), value.get("allow", False)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 86_400:
        raise wrong("timeout", "a number of seconds")
    if not (isinstance(allow, bool) or (isinstance(allow, list) and all(isinstance(one, str) for one in allow))):
        raise wrong("allow", "true, false or names of tools")
    cwd = value.get("cwd")
    if cwd is not None and not isinstance(cwd, str):
        raise wrong("cwd", "a folder")
    return ServerConfig(name, command, args, None if env is None else dict(env), cwd, float(timeout), allow)


class _Server:
    """A server that runs."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.tools: list[dict[str, Any]] = []  # as OpenAI has them, with the server's own names
        self.has_more = False  # tools than can be told of
        self.session: Any = None
        self._quiet = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # what it says on standard error
        self.task: asyncio.Task[None] | None = None
        self.is_over = asyncio.Event()
        self.dead: str | None = None

    async def run(self, is_ready: asyncio.Future[None]) -> None:
        """Start it, and hold it until it is not needed any more. Both in one task, as anyio wants."""
        from mcp import ClientSession, StdioServerParameters, stdio_client

        config = self.config
        parameters = StdioServerParameters(command=config.command, args=config.args, env=config.env, cwd=config.cwd)
        try:
            async with AsyncExitStack() as stack:
                streams = await stack.enter_async_context(stdio_client(parameters, errlog=self._quiet))
                self.session = await stack.enter_async_context(ClientSession(streams[0], streams[1]))
                await self.session.initialize()
                self.tools, self.has_more = await _listed(self.session)
                if not is_ready.done():
                    is_ready.set_result(None)
                await self.is_over.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as problem:
            self.dead = _first_reason(problem)
            if not is_ready.done():
                is_ready.set_exception(ServerError(self.dead))
        finally:
            self.session = None
            self._quiet.close()

    def is_allowed(self, tool: str) -> bool:
        allow = self.config.allow
        return allow if isinstance(allow, bool) else tool in allow


class McpServers:
    """Servers that run while this is open, and the tools that they offer.

    tools:     as OpenAI has them. Where two servers have one of the same name, it is named SERVER_TOOL.
    problems:  what kept a server from being used, a line for each.
    """

    def __init__(self, configs: list[ServerConfig], start_seconds: float = START_SECONDS) -> None:
        """Starts the servers, and waits until they are ready. Raises UsageError where `mcp` is not installed."""
        try:
            import mcp  # noqa: F401
        except ImportError:
            raise UsageError(
                'tools of MCP servers need the package mcp, which is not here; pip install "edgellm[mcp]" brings it',
                parameter="mcp",
            ) from None
        self.problems: list[str] = []
        self._by_tool: dict[str, tuple[_Server, str]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edgellm-mcp", daemon=True)
        self._thread.start()
        self._servers: list[_Server] = []
        try:
            for config in configs:
                self._start(config, start_seconds)
            self.tools = self._named_tools()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> McpServers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, config: ServerConfig, seconds: float) -> None:
        async def begin() -> _Server:
            server = _Server(config)
            is_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            server.task = asyncio.ensure_future(server.run(is_ready))
            try:
                await asyncio.wait_for(asyncio.shield(is_ready), seconds)
            except asyncio.TimeoutError:
                server.task.cancel()
                raise ServerError(f"it did not answer within {seconds:g} s") from None
            return server

        try:
            self._servers.append(self._wait(begin(), seconds + 10))
        except ServerError as problem:
            self.problems.append(f"the MCP server {config.name} ({config.command}) cannot be used: {problem}")

    def _wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise ServerError(f"it did not answer within {seconds:g} s") from None
        except BaseException:
            future.cancel()
            raise

    def _named_tools(self) -> list[dict[str, Any]]:
        names = [tool["function"]["name"] for server in self._servers for tool in server.tools]
        found = []
        for server in self._servers:
            if server.has_more:
                self.problems.append(
                    f"the MCP server {server.config.name} offers more than {MOST_TOOLS} tools; the others are left out"
                )
            for tool in server.tools:
                own = tool["function"]["name"]
                name = own if names.count(own) == 1 else f"{server.config.name}_{own}"
                name = re.sub(r"[^a-zA-Z0-9_.-]", "_", name)[:64]
                if name in self._by_tool:
                    self.problems.append(
                        f"the MCP server {server.config.name} has a second tool {name}; it is left out"
                    )
                    continue
                tool = {**tool, "function": {**tool["function"], "name": name}}
                try:
                    check_tool(tool)
                except UsageError as problem:
                    where = f"the tool {own} of the MCP server {server.config.name}"
                    self.problems.append(f"{where} is left out: {problem}")
                    continue
                self._by_tool[name] = (server, own)
                found.append(tool)
        return found

    def needs_confirming(self, name: str) -> bool:
        """Whether a person has to say yes to a call of a tool."""
        server, own = self._by_tool[name]
        return not server.is_allowed(own)

    def server_of(self, name: str) -> str:
        """The name of the server that offers a tool."""
        return self._by_tool[name][0].config.name

    def call(self, asked: Call) -> str:
        """Make a call. Raises ServerError for a server that has died or does not answer in time."""
        if asked.name not in self._by_tool:
            raise ServerError(f"no MCP server offers the tool {asked.name}")
        server, own = self._by_tool[asked.name]
        config = server.config
        if server.session is None:
            raise ServerError(f"the MCP server {config.name} has ended{f': {server.dead}' if server.dead else ''}")

        async def ask() -> Any:
            assert server.task is not None
            work = asyncio.ensure_future(server.session.call_tool(own, asked.arguments))
            done, _ = await asyncio.wait(
                {work, server.task}, timeout=config.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if work in done:
                return work.result()
            work.cancel()
            if server.task in done:
                raise ServerError("it has ended")
            raise ServerError(f"it did not answer within {config.timeout:g} s")

        try:
            return _result_text(self._wait(ask(), config.timeout + 10))
        except Exception as problem:
            raise ServerError(f"the MCP server {config.name} failed in {own}: {_first_reason(problem)}") from None

    def close(self) -> None:
        """End all servers."""

        async def end() -> None:
            tasks = [server.task for server in self._servers if server.task is not None]
            for server in self._servers:
                server.is_over.set()
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=5)
                for task in late:
                    task.cancel()

        if self._loop.is_closed():
            return
        with suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()


async def _listed(session: Any) -> tuple[list[dict[str, Any]], bool]:
    """The tools of all pages of a server's list, as OpenAI has them, and whether there are more than may be."""
    from mcp.types import PaginatedRequestParams

    tools: list[dict[str, Any]] = []
    page = await session.list_tools()
    while True:
        tools += [_as_tool(tool) for tool in page.tools]
        if page.next_cursor is None or len(tools) > MOST_TOOLS:
            return tools[:MOST_TOOLS], len(tools) > MOST_TOOLS
        page = await session.list_tools(params=PaginatedRequestParams(cursor=page.next_cursor))


def _as_tool(tool: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description or "",
            "parameters": {"type": "object", "properties": {}, **(tool.input_schema or {})},
        },
    }


def _result_text(result: Any) -> str:
    parts = []
    for part in result.content or ():
        text = getattr(part, "text", None)
        parts.append(text if isinstance(text, str) else f"({getattr(part, 'type', 'something')} that is no text)")
    text = "\n".join(parts)
    return f"error: {text}" if result.is_error else text


def _first_reason(problem: BaseException) -> str:
    """What went wrong, in one line; of several things at once, the first."""
    while isinstance(getattr(problem, "exceptions", None), tuple) and problem.exceptions:  # type: ignore[attr-defined]
        problem = problem.exceptions[0]  # type: ignore[attr-defined]
    if isinstance(problem, FileNotFoundError):
        return f"there is no program {problem.filename}"
    return " ".join(str(problem).split())[:300] or type(problem).__name__
