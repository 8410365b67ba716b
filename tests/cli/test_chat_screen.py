"""The chat as a person sees it on a terminal that obeys escapes."""

from __future__ import annotations

import json
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.cli.chat.status import status_line

from .conftest import FAKE

pytest.importorskip("pexpect", reason="the chat is tested through a pseudo-terminal")
pytest.importorskip("pyte", reason="pyte shows what a terminal would show")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")

UP, LEFT, CTRL_C, CTRL_D, ALT_ENTER = "\x1b[A", "\x1b[D", "\x03", "\x04", "\x1b\r"
COLOURS = re.compile(rb"\x1b\[[0-9;]*?(?:3[0-7]|4[0-7]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")
ESSAY = "word " * 60 + "**important** " + "`some code` " * 5
Start = Callable[..., Any]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    from tools.terminal import Terminal

    started = []

    def begin(*args: str, command: list[str] | None = None, **how: Any) -> Any:
        terminal = Terminal([*(command or FAKE), "run", *args], **how)
        started.append(terminal)
        return terminal

    yield begin
    for terminal in started:
        terminal.kill()


@pytest.fixture
def chat(start: Start, model: str) -> Start:
    """A chat that waits for its first message."""

    def begin(*args: str, **how: Any) -> Any:
        terminal = start(model, *args, **how)
        terminal.prompt()
        return terminal

    return begin


def conversations(home: Path) -> list[Path]:
    return sorted((home / "conversations").glob("*.json"))


def messages_in(path: Path) -> list[str]:
    return [message["content"] for message in json.loads(path.read_text())["messages"]]


# Typing.


def test_typing_editing_and_history(chat: Start, home: Path) -> None:
    terminal = chat()
    terminal.type(f"helo{LEFT}l\r")
    terminal.wait_for("heard 'hello' in 1 messages")
    terminal.prompt()
    terminal.type(f"first{ALT_ENTER}second\r")
    terminal.wait_for(r"heard 'first\nsecond' in 3 messages")
    terminal.prompt()
    terminal.type(UP)
    terminal.wait_for(lambda text: text.count("second") == 3)
    terminal.type("!\r")
    terminal.wait_for(r"heard 'first\nsecond!' in 5 messages")
    terminal.prompt()
    terminal.type('"""a\rb\r/bye"""\r')
    terminal.wait_for(r"heard 'a\nb\n/bye' in 7 messages")
    terminal.prompt()
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    history = home / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    again = chat()
    again.type(10 * UP + "\r")
    again.wait_for("heard 'hello' in 1 messages")


def test_pasted_lines_are_one_message_and_wait(chat: Start) -> None:
    terminal = chat()
    terminal.paste("def f():\n\treturn 1\n\n/bye\n")
    terminal.wait_for("/bye")
    assert "heard" not in terminal.look(0.3)
    terminal.type("end\r")
    terminal.wait_for(r"heard 'def f():\n\treturn 1\n\n/bye\nend' in 1 messages")


def test_commands_settings_and_files_are_completed(chat: Start, tmp_path: Path) -> None:
    (tmp_path / "some notes.txt").write_text("the text")
    terminal = chat()
    terminal.type("/sy\t")
    terminal.wait_for(">>> /system")
    terminal.type("\x15/set when\t")
    terminal.wait_for("/set when_full")
    terminal.type(" sh\t\r")
    terminal.wait_for("when_full: shift")
    terminal.prompt()
    terminal.type(f"/read {tmp_path}/so\t\r")
    terminal.wait_for("some notes.txt: 2 tokens, sent with your next")
    terminal.wait_for("1 file attached")


def test_what_is_typed_during_an_answer_waits_for_the_next_prompt(chat: Start) -> None:
    terminal = chat()
    terminal.type("slow one\r")
    terminal.wait_for("word3")
    terminal.type("next\r")
    terminal.wait_for("word20")
    assert "next" not in terminal.text
    terminal.type(CTRL_C)
    terminal.wait_for("heard 'next' in 3 messages")


# Ctrl-C.


def test_ctrl_c_at_the_prompt(chat: Start) -> None:
    terminal = chat()
    terminal.type("half a message")
    terminal.wait_for("half a message")
    terminal.type(CTRL_C)
    terminal.prompt()
    terminal.type(CTRL_C)
    terminal.wait_for("Ctrl-D or /bye leaves")
    terminal.prompt()
    terminal.type("whole\r")
    terminal.wait_for("heard 'whole' in 1 messages")


def test_a_prompt_that_is_read_shows_how_far_it_is_and_can_be_stopped(chat: Start) -> None:
    terminal = chat()
    terminal.type("read this\r")
    terminal.wait_for(lambda text: re.search(r"reading the prompt .* [2-5]\d % .*\d s left", text))
    terminal.wait_for("it is read")
    assert "reading the prompt" not in terminal.text
    terminal.prompt()
    terminal.type("read that\r")
    terminal.wait_for("reading the prompt")
    terminal.type(CTRL_C)
    terminal.wait_for("stopped before the answer began; the message is not kept")
    terminal.prompt()
    terminal.type("and now\r")
    terminal.wait_for("heard 'and now' in 3 messages")


def test_ctrl_c_while_answering_keeps_what_came(chat: Start, home: Path) -> None:
    terminal = chat()
    terminal.type("slow one\r")
    terminal.wait_for("word9")
    terminal.type(CTRL_C)
    terminal.prompt()
    assert messages_in(conversations(home)[0])[1].startswith("word0 word1 ")
    terminal.type("again\r")
    terminal.wait_for("heard 'again' in 3 messages")


# How it looks.


def test_markdown_at_forty_columns(chat: Start) -> None:
    terminal = chat(columns=40)
    terminal.paste(f"markdown\n# A title\n\n{ESSAY}\n\n- one\n- two")
    terminal.type("\r")
    terminal.wait_for(" • two")
    terminal.prompt()
    answer = terminal.text[terminal.text.rindex("A title") :]
    assert "**" not in answer and "`" not in answer
    assert answer.count("important") == 1 and answer.count("some code") == 5
    lines = answer.split("\n")
    assert max(map(len, lines)) <= 39
    assert {word for line in lines[2:] for word in line.split()} >= {"word", "important", "some", "code"}
    assert not {word for line in lines for word in line.split()} & {"wor", "wo", "d", "rd"}
    assert b"\x1b[1mimportant" in terminal.raw


@pytest.mark.parametrize("columns", [30, 110])
def test_a_terminal_that_is_resized(chat: Start, columns: int) -> None:
    terminal = chat(columns=70)
    terminal.type("slow one\r")
    terminal.wait_for("word30")
    terminal.resize(columns, 40)
    terminal.wait_for("word150")
    terminal.type(CTRL_C)
    terminal.prompt()
    assert max(map(len, terminal.lines)) < columns or columns > 70
    words = re.findall(r"word(\d+)", terminal.text)
    assert words[-100:] == [str(int(words[-1]) - 99 + n) for n in range(100)]
    terminal.type("hello\r")
    terminal.wait_for("in 3 messages")


def test_no_color_and_colours_of_the_terminal_alone(chat: Start) -> None:
    program = "markdown\n```python\ndef f(): return 'x'\n```\n`code` **bold**"
    for environ in ({}, {"NO_COLOR": "1"}):
        terminal = chat(**environ)
        terminal.paste(program)
        terminal.type("\r")
        terminal.wait_for(lambda text: text.count("bold") == 2 or "code bold" in text)
        terminal.prompt()
        assert bool(COLOURS.search(terminal.raw)) is not bool(environ)
        assert b"\x1b[38;" not in terminal.raw and b"\x1b[48;" not in terminal.raw  # none of a palette of its own
        terminal.kill()


def test_a_dumb_terminal_gets_no_escapes_and_whole_words(chat: Start) -> None:
    terminal = chat(columns=40, TERM="dumb")
    terminal.type("markdown x\r")
    terminal.prompt()
    terminal.type("slow one\r")
    terminal.wait_for("word60")
    terminal.type(CTRL_C)
    terminal.prompt()
    assert not re.search(rb"\x1b(?!\[\?2004[hl])", terminal.raw)
    assert all(re.fullmatch(r"word\d+( word\d+)*", line) for line in terminal.lines if line.startswith("word"))
    assert "then drops the oldest turns" in terminal.text  # as there is no status line


def test_the_status_line(chat: Start) -> None:
    terminal = chat()
    terminal.wait_for("chat · 0 of 1000 tokens (0 %), then drops the oldest turns")
    terminal.type("hello\r")
    terminal.wait_for("50 tokens/s")
    assert "tokens (0 %)" in terminal.lines[-1]


@pytest.mark.parametrize("width", range(20, 110, 3))
def test_the_status_line_says_the_most_that_fits(width: int) -> None:
    line = status_line("smollm2-135m", 4100, 8192, "then drops the oldest turns", 45.6, 2, width)
    assert len(line) <= width
    assert ("50 %" in line or "4100 of 8192" in line) and (width < 24 or "then drops" in line)
    assert "smollm2-135m" not in line or "46 tokens/s" in line


def test_without_the_libraries_the_chat_is_plain(start: Start, model: str) -> None:
    missing = "import sys; sys.modules.update(prompt_toolkit=None, rich=None); import runpy; sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", f"{missing} runpy.run_path(sys.argv[0], run_name='__main__')", FAKE[1]]
    terminal = start(model, command=command)
    terminal.prompt()
    terminal.type("**hello**\r")
    terminal.wait_for("heard '**hello**' in 1 messages")


# Conversations are kept.


def test_a_conversation_is_private_and_resumed(chat: Start, start: Start, home: Path, model: str) -> None:
    terminal = chat()
    terminal.type("one\r")
    terminal.wait_for("in 1 messages")
    terminal.prompt()
    terminal.type("exit\r")
    assert terminal.end() == 0
    (path,) = conversations(home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = start("--resume")  # the model is known from the conversation
    again.wait_for("resumed: ")
    assert "1 turn: one" in again.prompt()
    again.type("two\r")
    again.wait_for("in 3 messages")
    again.prompt()
    assert conversations(home) == [path]
    assert messages_in(path)[2] == "two"


def test_a_chat_that_is_killed_loses_nothing_that_was_sent(chat: Start, home: Path) -> None:
    terminal = chat()
    terminal.type("slow one\r")
    terminal.wait_for("word5")
    terminal._child.kill(signal.SIGKILL)
    terminal.end()
    assert messages_in(conversations(home)[0])[0] == "slow one"
    terminal = chat("--resume")
    terminal.type("slow two\r")
    terminal.wait_for("word5")
    terminal._child.kill(signal.SIGHUP)  # the terminal is closed
    terminal.end()
    assert messages_in(conversations(home)[0])[-1].startswith("word0 word1")


def test_two_chats_do_not_write_over_each_other(chat: Start, home: Path) -> None:
    first = chat()
    first.type("one\r")
    first.wait_for("in 1 messages")
    first.prompt()
    second = chat("--resume")
    second.type("two\r")
    second.wait_for("in 3 messages")
    second.prompt()
    first.type("three\r")
    first.wait_for("in 3 messages")
    first.wait_for("was changed by another chat")
    assert sorted(messages_in(path)[2] for path in conversations(home)) == ["three", "two"]


def test_nothing_is_kept_where_that_is_asked(chat: Start, home: Path) -> None:
    terminal = chat("--no-save")
    terminal.type("secret\r")
    terminal.wait_for("in 1 messages")
    terminal.prompt()
    terminal.type("/bye\r")
    assert terminal.end() == 0
    assert not conversations(home) and not (home / "chat_history").exists()


@pytest.mark.parametrize("damage", ["cut", "open", "link", "empty"])
def test_a_conversation_that_cannot_be_resumed(chat: Start, edgellm: Any, home: Path, damage: str, model: str) -> None:
    terminal = chat()
    terminal.type("one\r")
    terminal.wait_for("in 1 messages")
    terminal.prompt()
    terminal.kill()
    (path,) = conversations(home)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-20])
    elif damage == "empty":
        path.write_bytes(b'{"messages": []}')
    elif damage == "open":
        path.chmod(0o666)
    else:
        (home / "real").write_bytes(whole)
        path.unlink()
        path.symlink_to(home / "real")
    before = path.read_bytes()
    from tools.terminal import Terminal

    terminal = Terminal([*FAKE, "run", model, "--resume"], columns=300)
    assert terminal.end() == 1
    assert terminal.text.startswith("edgellm: error: ") and str(path) in terminal.text
    assert path.read_bytes() == before  # and nothing was written over it


def test_options_that_need_a_chat(edgellm: Any, model: str) -> None:
    for option in (["--resume"], ["--when-full", "drop"]):
        done = edgellm("run", model, "-p", "x", *option)
        assert done.returncode == 2 and f"{' '.join(option)} is for a chat on a terminal" in done.stderr


def test_nothing_to_resume(start: Start) -> None:
    terminal = start("--resume", columns=200)
    assert terminal.end() == 2
    assert "there is no conversation to resume in" in terminal.text


# Commands.


def test_undo_edit_and_stats(chat: Start) -> None:
    terminal = chat()
    for message, n in (("one", 1), ("two", 3)):
        terminal.type(f"{message}\r")
        terminal.wait_for(f"in {n} messages")
        terminal.prompt()
    terminal.type("/undo\r")
    terminal.wait_for("taken back; 1 turn left")
    terminal.prompt()
    terminal.type("/edit\r")
    terminal.wait_for(lambda text: text.endswith("tokens/s") and ">>> one" in text.partition("/edit")[2])
    terminal.type(" more\r")
    terminal.wait_for("heard 'one more' in 1 messages")
    terminal.prompt()
    terminal.type("/edit another\r")
    terminal.wait_for("heard 'another' in 1 messages")
    terminal.prompt()
    terminal.type("/stats\r")
    terminal.wait_for("first token after 0.25 s")
    terminal.prompt()
    terminal.type("/undo\r")
    terminal.wait_for("0 turns left")
    terminal.prompt()
    terminal.type("/undo\r")
    terminal.wait_for("there is no message to take back")


def test_files_go_with_the_next_message_alone(chat: Start, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha beta\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "long.txt").write_text("word " * 2000)
    terminal = chat(columns=200)
    for name, line in [
        ("bad.txt", "bad.txt is not UTF-8 text: byte 0xff at 0"), ("empty.txt", "empty.txt is empty"),
        ("long.txt", "long.txt has 2000 tokens, and the context holds 1000"), ("no.txt", "no.txt: No such file"),
        ("", "is a folder, pipe or device; expected a file"), ("a.txt", "a.txt: 2 tokens, sent with"),
    ]:  # fmt: skip
        terminal.type(f"/read {tmp_path}/{name}\r")
        terminal.wait_for(line)
        terminal.prompt()
    terminal.type("prompt\r")
    terminal.wait_for("heard '--- a.txt ---\\nalpha beta\\n--- end of a.txt ---\\n\\nprompt' in 1 messages")
    terminal.prompt()
    terminal.type("more\r")
    terminal.wait_for("heard 'more' in 3 messages")


def test_earlier_conversations_are_listed_and_loaded(chat: Start, home: Path) -> None:
    for text in ("about birds", "about fish"):
        terminal = chat()
        terminal.type(f"{text}\r")
        terminal.wait_for("in 1 messages")
        terminal.prompt()
        terminal.kill()
        time.sleep(0.02)
    terminal = chat(columns=100)
    terminal.type("/load\r")
    assert terminal.wait_for("/load NUMBER").index("about fish") < terminal.text.index("about birds")
    terminal.prompt()
    terminal.type("/load 2\r")
    terminal.wait_for(lambda text: re.search("resumed: .*about birds", text))
    terminal.prompt()
    terminal.type("more\r")
    terminal.wait_for("in 3 messages")
    terminal.prompt()
    terminal.type("/clear\r")
    terminal.wait_for("the conversation is forgotten; /load brings it back")
    assert sorted(len(messages_in(path)) for path in conversations(home)) == [2, 4]


def test_saving_does_not_write_over_another_file(chat: Start, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    terminal = chat(columns=200)
    terminal.type(f"/save {tmp_path}/thesis.txt\r")
    terminal.wait_for("is there and is no saved conversation; choose another name")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_regen_save_and_undo_of_a_base_model_do_what_they_say(start: Start, base_model: str, tmp_path: Path) -> None:
    terminal = start(base_model, columns=160)
    assert "the model does not see those before" in terminal.prompt()
    terminal.type("prompt of mine\r")
    terminal.wait_for("prompt of mine\nprompt of mine")
    terminal.prompt()
    terminal.type("/regen\r")
    terminal.wait_for("/regen\nprompt of mine")
    terminal.prompt()
    terminal.type(f"/save {tmp_path}/out.json\r")
    terminal.wait_for("saved to")
    assert messages_in(tmp_path / "out.json") == ["prompt of mine", "prompt of mine"]


# A full context.


def test_stop_keeps_all_turns_and_refuses_what_does_not_fit(chat: Start) -> None:
    terminal = chat("-c", "50", "--when-full", "stop", columns=160)
    terminal.wait_for("of 50 tokens (0 %), then stops")
    for message in ("one a b c d e f g", "two a b c d e f g"):
        terminal.type(f"{message}\r")
        terminal.wait_for(f"heard '{message}")
        terminal.prompt()
    terminal.type("three a b c d e f g\r")
    terminal.wait_for("the context holds 50; it is not sent: /clear begins anew, /set when_full drop")
    terminal.prompt()
    terminal.type("/set when_full drop\r")
    terminal.wait_for("when_full: drop")
    terminal.prompt()
    terminal.type("three a b c d e f g\r")
    terminal.wait_for("is full: the oldest turn is forgotten")
    terminal.prompt()
    terminal.type("/show\r")
    terminal.wait_for("3 turns, of which the model no longer reads the first 1")


def test_shift_lets_an_answer_go_on(chat: Start) -> None:
    terminal = chat("-c", "60", "--when-full", "shift", columns=160)
    terminal.wait_for("drops the oldest, also while answering")
    terminal.type("slow one\r")
    terminal.wait_for("word99")
    terminal.wait_for("the context of 60 tokens was full once, and the answer went on")


# Without a model.


def test_a_terminal_is_shown_what_there_is(start: Start, home: Path) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "mine.gguf").write_bytes(b"GGUF")
    terminal = start(columns=60)
    text = terminal.wait_for("Which one?")
    assert text.index("smollm2-135m") < text.index("gemma3-270m") < text.index("mine.gguf")
    assert "it cannot be run" in text.split("mine.gguf")[1]
    assert "98.4 MB, to be fetched; takes about" in text and "fits" in text
    assert max(map(len, terminal.lines)) <= 60
    terminal.type("nonsense\r")
    terminal.wait_for("nonsense is not one of them; expected a number")
    number = re.search(r"(\d+)\S*\s+smollm2-135m", text)
    assert number is not None
    terminal.type(f"{number[1]}\r")
    terminal.prompt()
    terminal.type("hello\r")
    terminal.wait_for("in 1 message")


def test_leaving_the_choice(start: Start) -> None:
    terminal = start()
    terminal.wait_for("Which one?")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
