"""The commands of the chat: their names, what they say in /help, and what they do."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.answer import tell_stats
from edgellm.cli.chat import kept, settings
from edgellm.cli.chat.attached import files_before
from edgellm.cli.conversation import Conversation
from edgellm.cli.template import describe_template, template_of
from edgellm.cli.terminal import columns, counted, remark, tell
from edgellm.errors import FormatError, UsageError

if TYPE_CHECKING:
    from edgellm.cli.chat.session import Chat
    from edgellm.engine import Model

_NAMES_WIDTH = 18  # of a command and its words in /help
_LISTED = 9  # conversations that /load shows


@dataclass(frozen=True)
class Command:
    """words: what may stand behind the name, for /help; empty when nothing may."""

    name: str
    words: str
    about: str
    run: Callable[[Chat, str], None]
    aliases: tuple[str, ...] = ()


class Leave(Exception):
    """The person is done."""


def run(chat: Chat, line: str) -> None:
    """Do what a line that begins with a slash says. Raises UsageError for what is no command, Leave for /bye."""
    name, _, rest = line.strip().partition(" ")
    if "\t" in name or "\n" in name:
        name, rest = line.split(maxsplit=1)
    command = by_name().get(name)
    if command is None:
        raise UsageError(f'no command {name}; /? lists them, and """ lets a message begin with /')
    if rest.strip() and not command.words:
        raise UsageError(
            f'{name} takes no words, so nothing was done; """ lets a message begin with /, and {name} alone is the '
            "command"
        )
    command.run(chat, rest.strip())


def by_name() -> dict[str, Command]:
    return {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


def completions(line: str) -> list[tuple[str, str, str]]:
    """What may stand in place of the last word of a line: (what is typed of it, a word, about it)."""
    name, space, rest = line.partition(" ")
    if not line.startswith("/"):
        return []
    if not space:
        return [(name, command.name, command.about) for command in COMMANDS if command.name.startswith(name)]
    if name == "/set":
        setting, space, value = rest.partition(" ")
        words = settings.WORDS.get(settings.plain_name(setting), {}) if space else dict.fromkeys(settings.names())
        typed = value if space else setting
        return [(typed, word, "") for word in words if word.startswith(typed)]
    if name in ("/read", "/load", "/save"):
        return [(rest, path, "") for path in _paths(rest)]
    return []


def _paths(typed: str) -> Iterator[str]:
    folder, begun = os.path.split(typed)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(begun) and (begun or not entry.name.startswith(".")):
            yield os.path.join(folder, entry.name) + (os.sep if entry.is_dir() else "")


def help_text(width: int) -> str:
    """All commands and keys, for a terminal of this width."""
    rows = [(f"{command.name} {command.words}".rstrip(), command.about) for command in COMMANDS] + _KEYS
    if width < 2 * _NAMES_WIDTH + 20:
        wrapped = [(name, textwrap.fill(about, width - 1, initial_indent="    ", subsequent_indent="    "))
                   for name, about in rows]  # fmt: skip
        return "\n".join(f"  {name}\n{about}" for name, about in wrapped)
    indent = " " * (_NAMES_WIDTH + 2)
    return "\n".join(
        textwrap.fill(about, width - 1, initial_indent=f"  {name:{_NAMES_WIDTH}}", subsequent_indent=indent)
        for name, about in rows
    )


def path_of(rest: str, command: str) -> Path:
    if not rest:
        raise UsageError(f"{command} needs a file name, as in: {command} chat.json")
    return Path(os.path.expanduser(rest))


def _help(chat: Chat, rest: str) -> None:
    tell(help_text(columns()))


def _set(chat: Chat, rest: str) -> None:
    if rest:
        name, _, value = rest.partition(" ")
        chat.set(name, value.strip())
    tell(settings.lines(chat.sampling, chat.behaviour))


def _system(chat: Chat, rest: str) -> None:
    template_of(chat.model, chat.is_raw, rest or None, verbose=False)  # refuses a text that would be lost
    chat.conversation = chat.conversation.with_system(rest or None)
    chat.keep()
    remark("the system text is set" if rest else "there is no system text now")


def _regen(chat: Chat, rest: str) -> None:
    if not chat.conversation.turns:
        raise UsageError("there is no message to answer again")
    chat.answer(chat.conversation.without_last_answer())


def _undo(chat: Chat, rest: str) -> None:
    if not chat.conversation.turns:
        raise UsageError("there is no message to take back")
    chat.conversation = chat.conversation.without_last()
    chat.keep()
    remark(f"the last message and its answer are taken back; {_turns(chat.conversation)} left")


def _edit(chat: Chat, rest: str) -> None:
    if not chat.conversation.turns:
        raise UsageError("there is no message to change")
    user = chat.conversation.turns[-1].user
    text = files_before(user) + rest if rest else chat.changed_by_hand(user)
    if not text.strip():
        remark("nothing is changed")
        return
    chat.answer(chat.conversation.without_last().with_user(text))


def _read(chat: Chat, rest: str) -> None:
    path = path_of(rest, "/read")
    n_tokens = chat.attached.read(path)
    remark(f"{path.name}: {counted(n_tokens, 'token')}, sent with your next message; /clear takes it away")


def _save(chat: Chat, rest: str) -> None:
    path = path_of(rest, "/save")
    if path.is_file():
        try:
            Conversation.load(path)
        except FormatError:
            raise UsageError(f"{path} is there and is no saved conversation; choose another name") from None
    chat.conversation.save(path)
    remark(f"saved to {path}")


def _load(chat: Chat, rest: str) -> None:
    if chat.is_plain_text:
        raise UsageError("a model without a chat template has no conversation to go on with")
    found = kept.recent(_LISTED)
    if not rest:
        if not found:
            raise UsageError("/load needs a file name, as in: /load chat.json; no conversation is kept yet")
        tell("\n".join(f"  {number}  {one.line()}" for number, one in enumerate(found, 1)))
        remark("/load NUMBER goes on with one of them, /load FILE with one that you saved")
        return
    path = path_of(rest, "/load")
    if rest.isdecimal() and 1 <= int(rest) <= len(found) and not path.exists():
        chat.resume(found[int(rest) - 1])
    else:
        chat.begin_with(Conversation.load(path))
        remark(f"{path}: {_turns(chat.conversation)}")


def _clear(chat: Chat, rest: str) -> None:
    is_kept = chat.is_kept and bool(chat.conversation.turns)
    chat.attached.clear()
    chat.begin_with(Conversation(chat.conversation.system))
    remark("the conversation is forgotten" + ("; /load brings it back" if is_kept and not chat.is_plain_text else ""))


def _show(chat: Chat, rest: str) -> None:
    n_left_out = chat.n_left_out
    left_out = f", of which the model no longer reads the first {n_left_out}" if n_left_out else ""
    tell(
        f"  model: {chat.model.path}\n"
        f"  {describe_template(chat.model, chat.is_raw)}\n"
        f"  context: {chat.n_used} of {chat.model.n_text} tokens, {_turns(chat.conversation)}{left_out}\n"
        f"  threads: {chat.model.n_threads}\n{_adapters(chat.model)}"
        f"  system: {chat.conversation.system or 'none'}\n{settings.lines(chat.sampling, chat.behaviour)}"
    )


def _adapters(model: Model) -> str:
    """A line about the adapters that are used, where there are any."""
    used = ", ".join(f"{scale:g} x {name}" for name, scale in model.adapters.items() if scale)
    return f"  adapters: {used}\n" if used else ""


def _stats(chat: Chat, rest: str) -> None:
    remark(f"context: {chat.n_used} of {chat.model.n_text} tokens, {_turns(chat.conversation)}")
    if chat.last_stats is None:
        remark("nothing was answered yet")
    else:
        tell_stats(chat.last_stats)


def _leave(chat: Chat, rest: str) -> None:
    raise Leave


def _turns(conversation: Conversation) -> str:
    return counted(len(conversation.turns), "turn")


COMMANDS = (
    Command("/help", "", "show these lines", _help, ("/?",)),
    Command("/regen", "", "answer the last message again", _regen),
    Command("/undo", "", "take the last message and its answer back", _undo),
    Command("/edit", "[TEXT]", "change the last message, but for its files, and have it answered anew", _edit),
    Command("/read", "FILE", "put the text of a file before your next message", _read),
    Command("/system", "TEXT", "set how the model should behave; without TEXT, remove it", _system),
    Command("/set", "NAME VALUE", "change a setting, such as /set temperature 0.2; without both, show them", _set),
    Command("/show", "", "show model, template, settings and how full the context is", _show),
    Command("/stats", "", "show how fast the last answer was", _stats),
    Command("/save", "FILE", "write the conversation as JSON", _save),
    Command("/load", "[FILE]", "go on with a saved conversation; without FILE, list those of before", _load),
    Command("/clear", "", "begin a new conversation", _clear),
    Command("/bye", "", "leave (as do exit and Ctrl-D)", _leave, ("/quit", "/exit")),
)
_KEYS = [
    ('"""', "begin and end a message of several lines"),
    ("Alt-Enter", "begin a new line"),
    ("Ctrl-C", "stop the answer"),
]
