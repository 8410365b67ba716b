"""MCP servers that behave, and some that do not. As a program: `python servers.py KIND`."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}


def tools(kind: str) -> list[types.Tool]:
    names = {"good": ["add", "fail", "secret"], "other": ["add"], "hangs": ["wait"], "dies": ["leave"], "odd": ["odd"]}
    schema = {"type": "object", "properties": {"a": {"not": {}}}} if kind == "odd" else SCHEMA
    return [types.Tool(name=name, description=f"{name} of {kind}", input_schema=schema) for name in names[kind]]


async def call(name: str, arguments: dict) -> types.CallToolResult:
    if name == "wait":
        await asyncio.sleep(60)
    if name == "leave":
        os._exit(3)
    if name == "fail":
        return types.CallToolResult(content=[types.TextContent(type="text", text="no such number")], is_error=True)
    text = os.environ.get("SECRET", "nothing") if name == "secret" else str(arguments["a"] + arguments["b"])
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


async def serve(kind: str) -> None:
    async def list_tools(context, params) -> types.ListToolsResult:
        if kind == "many":  # a page of fifty after the other, without an end
            first = int(getattr(params, "cursor", None) or 0)
            page = [types.Tool(name=f"t{n}", input_schema=SCHEMA) for n in range(first, first + 50)]
            return types.ListToolsResult(tools=page, next_cursor=str(first + 50))
        return types.ListToolsResult(tools=tools(kind))

    async def call_tool(context, params) -> types.CallToolResult:
        return await call(params.name, params.arguments or {})

    server = Server("test", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    kind = sys.argv[1]
    if kind == "silent":
        time.sleep(60)
    elif kind == "nonsense":
        print("this is no JSON", flush=True)
        time.sleep(60)
    elif kind == "ends":
        sys.exit(1)
    asyncio.run(serve(kind))
