"""MCP servers over stdio: those that answer, and those that die, hang or talk nonsense."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgellm.agent.mcp import McpServers, ServerConfig, ServerError, read_config
from edgellm.errors import FormatError
from edgellm.text.calls import Call

PROGRAM = str(Path(__file__).with_name("servers.py"))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def config(kind: str, **more: Any) -> ServerConfig:
    return ServerConfig(kind, sys.executable, [PROGRAM, kind], **more)


def test_tools_and_calls(monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "of this shell")
    with McpServers([config("good", allow=["add"]), config("other")]) as servers:
        names = [tool["function"]["name"] for tool in servers.tools]
        assert names == ["good_add", "fail", "secret", "other_add"]
        assert servers.problems == []
        assert servers.call(Call("good_add", {"a": 2, "b": 3})) == "5"
        assert servers.call(Call("fail", {"a": 2, "b": 3})) == "error: no such number"
        assert servers.call(Call("secret", {"a": 2, "b": 3})) == "nothing"  # a server does not get our environment
        assert not servers.needs_confirming("good_add") and servers.needs_confirming("other_add")
        assert servers.server_of("other_add") == "other"
        with pytest.raises(ServerError, match="no MCP server offers"):
            servers.call(Call("add", {}))


def test_a_server_that_dies_and_one_that_hangs_leave_the_others() -> None:
    started = time.monotonic()
    with McpServers([config("dies"), config("hangs", timeout=0.5), config("good")]) as servers:
        with pytest.raises(ServerError, match="dies") as told:
            servers.call(Call("leave", {"a": 1, "b": 1}))
        assert "\n" not in str(told.value)
        with pytest.raises(ServerError, match=r"hangs.*did not answer within 0.5 s"):
            servers.call(Call("wait", {"a": 1, "b": 1}))
        with pytest.raises(ServerError, match="dies"):
            servers.call(Call("leave", {"a": 1, "b": 1}))
        assert servers.call(Call("add", {"a": 20, "b": 3})) == "23"
    assert time.monotonic() - started < 40


def test_servers_that_do_not_start() -> None:
    configs = [config("ends"), config("silent"), ServerConfig("none", "no-such-program-anywhere"), config("good")]
    with McpServers(configs, start_seconds=8) as servers:
        assert [tool["function"]["name"] for tool in servers.tools] == ["add", "fail", "secret"]
        assert [problem.split()[3] for problem in servers.problems] == ["ends", "silent", "none"]
        assert "within 8 s" in servers.problems[1] and "no-such-program-anywhere" in servers.problems[2]
        assert not any("\n" in problem for problem in servers.problems)


def test_a_tool_that_cannot_be_followed_is_left_out_and_told() -> None:
    with McpServers([config("odd")]) as servers:
        assert servers.tools == [] and "odd" in servers.problems[0] and '"not"' in servers.problems[0]


def test_a_list_of_several_pages() -> None:
    with McpServers([config("many")]) as servers:
        assert [tool["function"]["name"] for tool in servers.tools] == [f"t{n}" for n in range(128)]
        assert servers.problems == ["the MCP server many offers more than 128 tools; the others are left out"]


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    server = {"command": "x", "args": ["a"], "env": {"A": "b"}, "timeout": 3, "allow": ["t"]}
    file.write_text(json.dumps({"mcpServers": {"one": server, "two": {"command": "y", "disabled": True}}}))
    assert read_config(file) == [ServerConfig("one", "x", ["a"], {"A": "b"}, None, 3.0, ["t"])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "mcpServers"),
        ("[]", "mcpServers"),
        ('{"mcpServers": []}', "mcpServers"),
        ("\xff", "mcpServers"),
        ('{"mcpServers": {"a": 3}}', "'a'"),
        ('{"mcpServers": {"a": {}}}', "command"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "args"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}', "env"),
        ('{"mcpServers": {"a": {"command": "x", "timeout": -1}}}', "timeout"),
        ('{"mcpServers": {"a": {"command": "x", "allow": 3}}}', "allow"),
        ('{"mcpServers": {"a": {"command": "x", "comand": 3}}}', "comand"),
        ('{"mcpServers": {"a": {"url": "http://a.b"}}}', "network"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(FormatError) as told:
        read_config(file)
    assert str(file) in str(told.value) and words in str(told.value) and "\n" not in str(told.value)
