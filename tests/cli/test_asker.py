"""Answers with thoughts and calls, as a terminal shows them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from edgellm.cli.answer import stream
from edgellm.cli.asker import Asker
from edgellm.cli.screen.thoughts import ThoughtView
from edgellm.cli.screen.view import PlainView


class Round:
    """A generation of parts (kind, text), which may end with a call."""

    def __init__(self, *parts: tuple[str, str], call: str = "") -> None:
        self._parts = parts
        arguments: dict[str, Any] = {"a": 1}
        self.tool_calls = [SimpleNamespace(id="1", name=call, arguments=arguments)] if call else []
        self.message = {"role": "assistant", "content": ""}
        self.finish_reason = "stop"
        self.stats = SimpleNamespace(n_prompt_tokens=3)

    def pieces(self) -> Iterator[Any]:
        return (SimpleNamespace(kind=kind, text=text) for kind, text in self._parts)


class Model:
    """Answers with one round after the other."""

    chat_template = SimpleNamespace(reasoning=True)

    def __init__(self, *rounds: Round) -> None:
        self.rounds, self.asked = list(rounds), []  # type: ignore[var-annotated]

    def chat(self, messages: list[Any], **keywords: Any) -> Round:
        self.asked.append((list(messages), keywords))
        return self.rounds.pop(0)


class Servers:
    def __init__(self, confirmed: bool) -> None:
        self.tools = [{"type": "function", "function": {"name": "add"}}]
        self.confirmed, self.called = confirmed, []  # type: ignore[var-annotated]

    def server_of(self, name: str) -> str:
        return "sums"

    def needs_confirming(self, name: str) -> bool:
        return not self.confirmed

    def call(self, call: Any) -> str:
        self.called.append(call.name)
        return "5"


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_call_is_told_between_lines_of_the_answer(confirmed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can say yes where there is no terminal, and what nobody says is no."""
    model = Model(Round(("content", "I add."), call="add"), Round(("content", "It is 5.")))
    servers = Servers(confirmed)
    answer = Asker(model, servers=servers).chat([{"role": "user", "content": "2+3"}])  # type: ignore[arg-type]
    assert stream(answer, PlainView()) == "I add.\n\nIt is 5."
    out, err = capsys.readouterr()
    assert out == "I add.\nIt is 5.\n"
    assert err == f"edgellm: {'calling' if confirmed else 'not called:'} sums: add(a=1)\n"
    assert servers.called == ["add"] * confirmed
    result = model.asked[1][0][-1]
    assert result["role"] == "tool" and result["content"] == ("5" if confirmed else "error: the user refused this call")


def test_thoughts_come_before_the_answer_and_are_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    asker = Asker(Model(Round(("reasoning", "so "), ("reasoning", "it\x1b is"), ("content", "4")), Round()))  # type: ignore[arg-type]
    asker.thoughts = ThoughtView()
    assert stream(asker.chat([]), PlainView()) == "4"
    out, err = capsys.readouterr()
    assert out == "4\n"
    assert re.sub(r"\x1b\[\d*m", "", err) == "so it\\x1b is\n" and err.startswith("\x1b[2m")
    stream(asker.chat([]), PlainView())
    assert capsys.readouterr().out == "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_what_was_typed_before_a_question_is_no_answer_to_it() -> None:
    pexpect = pytest.importorskip("pexpect")
    code = (
        "import sys, time\n"
        "from edgellm.cli import asker\n"
        "from edgellm.cli.terminal import quiet_keyboard\n"
        "with quiet_keyboard():\n"
        "    print('ready', flush=True); time.sleep(0.8)\n"
        "    for n in range(2): print('said', repr(asker._ask('call? ', lambda: False)), flush=True)\n"
    )
    child = pexpect.spawn(sys.executable, ["-c", code], env={**os.environ, "TERM": "xterm"}, timeout=30)
    child.expect("ready")
    child.sendline("always")
    child.expect("call\\? ")
    child.sendline("no")
    child.expect("said 'no'")
    assert b"no\r\n" in child.before  # it is shown
    child.expect("call\\? ")
    child.sendline("y")
    child.expect("said 'y'")
    child.close()
