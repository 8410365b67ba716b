"""The chat, through a real pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.cli.chat import changed
from edgellm.cli.conversation import Conversation, Turn
from edgellm.errors import ContextOverflowError, FileProblem, FormatError, UsageError
from edgellm.params import SamplingParams

from .conftest import FAKE

pexpect = pytest.importorskip("pexpect", reason="the chat is tested through a pseudo-terminal")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")

PROMPT = ">>> "
Chat = Callable[..., Any]


@pytest.fixture
def chat(home: Path) -> Iterator[Chat]:
    """Start a chat and wait for its prompt; its `say` gives what is shown until the next prompt."""
    started = []

    def start(*args: str, echo: bool = False) -> Any:
        environ = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull, "COLUMNS": "200"}
        child = pexpect.spawn(FAKE[0], [*FAKE[1:], "run", *args], env=environ, encoding="utf-8", timeout=60,
                              dimensions=(50, 200), echo=echo)  # fmt: skip
        started.append(child)
        child.delaybeforesend = None

        def say(line: str) -> str:
            child.sendline(line)
            child.expect_exact(PROMPT)
            return _plain(child.before)

        child.say = say
        child.expect_exact(PROMPT)
        child.greeting = _plain(child.before)
        return child

    yield start
    for child in started:
        child.close(force=True)


def _plain(shown: str) -> str:
    """What is shown, without readline's own escapes."""
    return re.sub(r"\x1b\[\?2004[hl]\r?", "", shown).replace("\r\n", "\n")


def test_messages_are_answered_and_remembered(chat: Chat, model: str) -> None:
    child = chat(model)
    assert "chatting; /? for help" in child.greeting
    assert "heard 'one' in 1 messages\n" in child.say("one")
    assert "heard 'two' in 3 messages\n" in child.say("two")
    assert "the conversation is forgotten" in child.say("/clear")
    assert "heard 'three' in 1 messages\n" in child.say("three")


@pytest.mark.parametrize("leave", ["/bye", "\x04"])
def test_leaving(chat: Chat, model: str, leave: str) -> None:
    child = chat(model)
    child.send(leave if leave == "\x04" else f"{leave}\n")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "Traceback" not in child.before


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Chat, model: str) -> None:
    child = chat(model)
    child.sendline("slow one")
    child.expect_exact("word3 ")
    child.sendintr()
    child.expect_exact(PROMPT)
    assert "word999" not in child.before
    assert "heard 'again' in 3 messages" in child.say("again")  # the partial answer is part of the history
    shown = child.say("prompt")
    assert re.search(r"<assistant> word0 word1 word2 word3 ", shown)


def test_ctrl_c_at_the_prompt_tells_how_to_leave(chat: Chat, model: str) -> None:
    child = chat(model, echo=True)
    child.send("half a line")
    child.expect_exact("half a line")  # readline has taken it
    child.sendintr()
    child.expect_exact("Ctrl-D or /bye leaves")
    child.expect_exact(PROMPT)
    assert "heard 'whole'" in child.say("whole")


def test_several_lines_and_typing_ahead(chat: Chat, model: str) -> None:
    child = chat(model)
    child.send('"""first\n  second\n/bye\n"""\n')
    child.expect_exact(PROMPT)
    assert r"heard 'first\n  second\n/bye' in 1 messages" in child.before
    child.send("a\nb\n")
    child.expect_exact("heard 'a' in 3 messages")
    child.expect_exact("heard 'b' in 5 messages")


def test_pasted_lines_are_one_message(chat: Chat, model: str) -> None:
    pytest.importorskip("readline")
    child = chat(model)
    child.send("\x1b[200~one\ntwo\x1b[201~\n")
    index = child.expect_exact([r"heard 'one\ntwo' in 1 messages", "heard 'two' in 3 messages"])
    if index == 1:
        pytest.skip("this readline does not know bracketed paste")


def test_a_pasted_program_that_begins_with_a_docstring_is_sent_whole(chat: Chat, model: str) -> None:
    pytest.importorskip("readline")
    child = chat(model)
    child.send('\x1b[200~"""docstring."""\nimport os\n\n"""more"""\nlast = 1\x1b[201~\n')
    child.expect_exact(PROMPT)
    if "in 3 messages" not in child.before and "import os" not in child.before:
        pytest.skip("this readline does not know bracketed paste")
    assert r'"""docstring."""\nimport os\n\n"""more"""\nlast = 1' in child.before


@pytest.mark.parametrize("typed, heard", [
    ('"""a""" and more', '"""a""" and more'), ('"""a\nb""" and more', '"""a\nb""" and more'), ('  """a"""  ', "a"),
    ('"""a\n  b\n"""', "a\n  b"), ('"""\n\na\n\n"""', "\na\n"), ('""""a""""', '""""a""""'), ('"""/bye"""', "/bye"),
    ('"a"', '"a"'), ('x = """a"""', 'x = """a"""'), ("ends with \\", "ends with \\"), ("    indented", "    indented"),
    ("'''a'''", "'''a'''"), ('"""a"""b"""', '"""a"""b"""'),
])  # fmt: skip
def test_nothing_that_was_typed_is_left_out(chat: Chat, model: str, typed: str, heard: str) -> None:
    child = chat(model)
    child.send(f"{typed}\n")
    child.expect_exact(" in 1 messages")
    assert _plain(child.before).strip().endswith(f"heard {heard!r}")


def test_an_end_of_the_input_inside_quotes(chat: Chat, model: str) -> None:
    child = chat(model)
    child.send('"""first\nsecond\n')
    child.expect_exact("... ")
    child.send("\x04")
    child.expect_exact("before the closing")
    child.expect_exact(r"heard 'first\nsecond' in 1 messages")
    child.expect_exact(PROMPT)
    assert "in 3 messages" in child.say("again")


def test_words_behind_a_command_that_takes_none_are_not_dropped(chat: Chat, model: str) -> None:
    child = chat(model)
    child.say("one")
    for line in ("/clear the table", "/regen with less", "/show me", "/? what", "/help me", "/bye now"):
        assert f"{line.split()[0]} takes no words, so nothing was done" in child.say(line)
    assert "in 3 messages" in child.say("two")
    assert "the system text is set" in child.say("  /system\tBe kind")
    assert "<system> Be kind" in child.say("prompt")


def test_an_empty_answer_is_said(chat: Chat, model: str) -> None:
    assert "the model answered with nothing; the message is not kept" in chat(model).say("silence")


def test_a_model_cannot_steer_the_terminal(chat: Chat, model: str) -> None:
    shown = chat(model).say("escape")
    assert r"red \x1b[31m\x9b\x0d bell\x07" in shown
    assert "\ttab é" in shown or "    tab é" in shown
    assert "\x1b[31m" not in shown and "\x07" not in shown


def test_regen_and_system_and_set_and_show(chat: Chat, model: str) -> None:
    child = chat(model, "--system", "Be kind")
    assert "there is no message to answer again" in child.say("/regen")
    assert "<system> Be kind\n<user> prompt\n" in child.say("prompt")
    assert "<system> Be kind\n<user> prompt\n" in child.say("/regen")
    assert "the system text is set" in child.say("/system Be brief")
    shown = child.say("/regen")
    assert "<system> Be brief\n<user> prompt\n" in shown
    assert "  temperature: 0.2\n" in child.say("/set temperature 0.2")
    assert "temperature=0.2" in child.say("sampling")
    assert "temperature is -3.0; expected a number of at least 0" in child.say("/set temp -3")
    assert "no setting colour; there are temperature, top_k" in child.say("/set colour red")
    shown = child.say("/show")
    for line in (f"model: {model}", "chat template: the file's own", "of 1000 tokens, 2 turns", "threads: 2",
                 "system: Be brief", "temperature: 0.2", "seed: none"):  # fmt: skip
        assert line in shown
    assert "there is no system text now" in child.say("/system")
    assert "Ctrl-C            stop the answer" in child.say("/?")
    assert "no command /nonsense; /? lists them" in child.say("/nonsense")
    assert "no command /etc/passwd" in child.say("/etc/passwd")


def test_save_and_load(chat: Chat, model: str, tmp_path: Path) -> None:
    child = chat(model, "--system", "Be kind")
    child.say("one")
    assert "saved to" in child.say(f"/save {tmp_path}/my chat.json")
    saved = json.loads((tmp_path / "my chat.json").read_text())
    assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant"]
    child.say("/clear")
    assert "1 turn" in child.say(f"/load {tmp_path}/my chat.json")
    assert "heard 'two' in 4 messages" in child.say("two")
    assert "No such file or directory" in child.say("/load missing.json")
    assert "needs a file name" in child.say("/save")
    (tmp_path / "bad.json").write_text("[]")
    assert "not a saved conversation" in child.say(f"/load {tmp_path}/bad.json")
    assert "heard 'three' in 6 messages" in child.say("three")


def test_a_context_that_fills_up_is_said(chat: Chat, model: str) -> None:
    child = chat(model, "-c", "60")
    child.say("one a b c d e f g")
    child.say("two a b c d e f g")
    shown = child.say("three a b c d e f g")
    assert "the context of 60 tokens is full: the oldest turn is forgotten" in shown
    assert "in 3 messages" in shown
    shown = child.say(" ".join(["much"] * 70))
    assert "this message alone makes 71 tokens, the context holds 60; it is not sent" in shown
    assert "in 3 messages" in child.say("four")  # two, three and four would be too much: nothing else was lost
    shown = child.say("slow")
    assert "the context of 60 tokens is full, so the answer stops here; the next message drops" in shown
    assert "context: 60 of 60 tokens" in child.say("/stats")


def test_a_base_model_completes_plain_text(chat: Chat, base_model: str) -> None:
    child = chat(base_model)
    assert child.greeting.count("has no chat template (a base model): it continues your text") == 1
    assert child.say("prompt of mine").strip() == "prompt of mine"
    assert "no conversation to go on with" in child.say("/load x")
    assert "--system cannot be used" in child.say("/system x")
    assert "chat template: none in the file" in child.say("/show")


def test_what_goes_wrong_is_a_line_and_the_chat_goes_on(chat: Chat, model: str) -> None:
    child = chat(model, "--stats")
    shown = child.say("Hi")
    assert "first token after 0.25 s" in shown
    child.send(
        b"\xff\xfe bad\n".decode("utf-8", "surrogateescape").encode("utf-8", "surrogateescape").decode("latin-1")
    )
    child.expect_exact(PROMPT)


def test_history_is_kept_across_chats(chat: Chat, model: str, home: Path) -> None:
    pytest.importorskip("readline")
    child = chat(model)
    child.say("remember me")
    child.sendline("/bye")
    child.expect(pexpect.EOF)
    assert "remember me" in (home / "chat_history").read_text()
    child = chat(model)
    child.send("\x1b[A\x1b[A\n")
    child.expect_exact("heard 'remember me'")


def test_answers_into_a_file_leave_the_prompts_on_the_terminal(home: Path, model: str, tmp_path: Path) -> None:
    command = " ".join([*FAKE, "run", model])
    child = pexpect.spawn("sh", ["-c", f"{command} > {tmp_path}/out.txt"], encoding="utf-8", timeout=60)
    child.expect_exact(PROMPT)
    child.sendline("Hi")
    child.expect_exact(PROMPT)
    child.sendline("/bye")
    child.expect(pexpect.EOF)
    child.close()
    assert (tmp_path / "out.txt").read_text() == "heard 'Hi' in 1 messages\n"


# The conversation by itself.


def words(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def test_fitting_drops_the_oldest_turns_and_keeps_the_system_text() -> None:
    turns = tuple(Turn(f"question {n}", f"answer {n}") for n in range(10))
    full = Conversation("be kind", turns).with_user("last question")
    fitted = full.fitted(20, words)
    assert fitted.system == "be kind"
    assert fitted.turns == full.turns[-3:]  # 2 + 2 * 4 + 2 = 12 of the 15 that leave room for an answer
    assert full.fitted(1000, words) == full
    assert full.fitted(5, words).turns == full.turns[-1:]
    with pytest.raises(ContextOverflowError, match="this message alone makes 4 tokens, the context holds 4"):
        full.fitted(4, words)


def test_a_conversation_survives_its_file(tmp_path: Path) -> None:
    conversation = Conversation("sys").with_user("ü\n").with_answer("yes").with_user("unanswered")
    conversation.save(tmp_path / "c.json")
    assert Conversation.load(tmp_path / "c.json") == conversation


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[1]", '{"messages": 3}', '{"messages": [3]}', '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "user", "content": 3}]}', '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "x", "name": "lost"}]}',
        '{"messages": [{"role": "assistant", "content": "x"}]}', "[" * 100_000, "\udcff",
        '{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "\\ud800"}]}', '{"messages": [], "messages": []}',
        '{"messages": [{"role": "user", "content": "x", "content": "y"}]}', '{"messages": [], "model": 3}',
        '{"messages": [], "tools": []}', '{"messages": [{"role": "user", "content": null}]}', '{"messages": {"a": 1}}',
    ],
)  # fmt: skip
def test_files_that_hold_no_conversation(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match="not a saved conversation"):
        Conversation.load(tmp_path / "c.json")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(FileProblem, match="expected a file"):
            Conversation.load(path)


def test_a_file_that_is_too_large_for_a_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.cli.conversation._FILE_LIMIT", 100)
    (tmp_path / "c.json").write_text('{"messages": []}' + " " * 100)
    with pytest.raises(FormatError, match="larger than any conversation"):
        Conversation.load(tmp_path / "c.json")


def test_a_very_long_conversation_is_fitted_by_few_counts() -> None:
    turns = tuple(Turn("question", "answer") for _ in range(100_000))
    counts = []

    def count(messages: list[dict[str, str]]) -> int:
        counts.append(len(messages))
        return len(messages)

    assert len(Conversation(None, turns).with_user("last").fitted(1000, count).turns) == 375
    assert len(counts) < 30


def test_settings_are_read_as_their_own_type() -> None:
    params = SamplingParams()
    assert changed(params, "temp", "0.5").temperature == 0.5
    assert changed(params, "max-tokens", "9").max_tokens == 9
    assert changed(changed(params, "seed", "4"), "seed", "none").seed is None
    assert changed(params, "stop", "a b").stop == ("a b",)
    assert changed(params, "stop", '["a\\n", "b"]').stop == ("a\n", "b")
    assert changed(params, "banned-strings", "x").banned_strings == ("x",)
    assert changed(changed(params, "stop", "a"), "stop", "none").stop == ()
    assert changed(params, "samplers", "top_k;temp").samplers == ("top_k", "temperature")
    assert changed(params, "logit_bias", "5+1, 6-inf").logit_bias == {5: 1.0, 6: float("-inf")}
    assert changed(params, "mirostat", "2").mirostat == 2
    for name, value in [("logit_bias", "x"), ("samplers", "x"), ("stop", ""), ("stop", "[5]"), ("logprobs", "5")]:
        with pytest.raises(UsageError, match=name):
            changed(params, name, value)
    for name, value in [("top_k", "many"), ("top_k", "none"), ("top_k", ""), ("top_p", "2"), ("seed", "-1")]:
        with pytest.raises(UsageError, match=name):
            changed(params, name, value)
