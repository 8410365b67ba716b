"""The chat of `edgellm run`: messages, answers, and the commands that begin with a slash."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli.answer import larger_context, stream, tell_stats
from edgellm.cli.asker import Asker
from edgellm.cli.conversation import Conversation, Message
from edgellm.cli.reader import LineReader
from edgellm.cli.sampling import read_setting, setting_names
from edgellm.cli.template import describe_template, template_of
from edgellm.cli.terminal import harmless, note, show_answer
from edgellm.errors import EdgellmError, UsageError
from edgellm.params import SamplingParams

if TYPE_CHECKING:
    from edgellm.engine import Generation, Model

_HELP = '''\
  /clear            forget the conversation
  /regen            answer the last message again
  /system TEXT      set how the model should behave; without TEXT, remove it
  /set NAME VALUE   change a setting, such as /set temperature 0.2; without both, show them
  /show             show model, template, settings and how full the context is
  /save FILE        write the conversation as JSON
  /load FILE        go on with a saved conversation
  /bye              leave (as does Ctrl-D)
  """               begin and end a message of several lines
  Ctrl-C            stop the answer'''

# Settings that are always shown.
COMMON = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "max_tokens",
)  # fmt: skip
_WITH_WORDS = ("/system", "/set", "/save", "/load")


class Chat:
    """One conversation with one model on a terminal."""

    def __init__(
        self,
        model: Model,
        sampling: SamplingParams,
        *,
        system: str | None,
        raw: bool,
        stats: bool,
        verbose: bool,
        asker: Asker | None = None,
    ) -> None:
        self._model = model
        self._asker = asker or Asker(model)
        self._sampling = sampling
        self._raw = raw
        self._stats = stats
        self._template = template_of(model, raw, system, verbose)
        self._conversation = Conversation(system)
        self._n_used = 0  # tokens of the context after the last answer
        self._commands = {
            "/?": self._help, "/help": self._help, "/clear": self._clear, "/regen": self._regen,
            "/system": self._system, "/set": self._set, "/show": self._show, "/save": self._save,
            "/load": self._load,
        }  # fmt: skip

    def loop(self) -> None:
        """Read and answer until the person leaves."""
        reader = LineReader()
        note("chatting; /? for help, Ctrl-D to leave")
        while True:
            try:
                text, quoted = reader.read()
            except EOFError:
                show_answer("\n")
                return
            except KeyboardInterrupt:
                show_answer("\n")
                note("Ctrl-D or /bye leaves")
                continue
            except UnicodeError:
                note("that line is not valid UTF-8; nothing was sent")
                continue
            if text.strip() == "/bye" and not quoted:
                return
            if text:
                self._handle(text, quoted)

    def _handle(self, text: str, quoted: bool) -> None:
        """Run a command or answer a message; whatever goes wrong is a line, and the chat goes on."""
        try:
            if text.lstrip().startswith("/") and not quoted:
                self._command(*text.split(maxsplit=1))
            elif self._template is None:
                self._complete(text)
            else:
                self._answer(self._conversation.with_user(text))
        except KeyboardInterrupt:
            show_answer("\n")
        except EdgellmError as error:
            note(str(error))
        except OSError as error:
            note(f"{error.filename}: {error.strerror}" if error.filename else str(error))

    def _command(self, name: str, rest: str = "") -> None:
        if name not in self._commands and name != "/bye":
            raise UsageError(f'no command {name}; /? lists them, and """ lets a message begin with /')
        if rest.strip() and name not in _WITH_WORDS:
            raise UsageError(
                f'{name} takes no words, so nothing was done; """ lets a message begin with /, and {name} alone is the '
                "command"
            )
        self._commands[name](rest.strip())

    def _answer(self, asked: Conversation) -> None:
        """Answer the last message of `asked`. The conversation changes only when something came."""
        fitted = asked.fitted(self._model.n_ctx, self._count, larger_context(self._model))
        n_dropped = len(asked.turns) - len(fitted.turns)
        if n_dropped:
            what = "oldest turn is" if n_dropped == 1 else f"{n_dropped} oldest turns are"
            note(f"the context of {self._model.n_ctx} tokens is full: the {what} forgotten")
        generation = self._asker.chat(fitted.messages(), **vars(self._sampling))
        text = stream(generation)
        if text:
            self._conversation = fitted.with_answer(text)
        self._end_answer(generation)
        if not text and generation.finish_reason == "stop":
            note("the model answered with nothing; the message is not kept")

    def _complete(self, text: str) -> None:
        """Continue plain text; every message stands for itself."""
        generation = self._model.generate(text, **vars(self._sampling))
        stream(generation)
        self._end_answer(generation)

    def _end_answer(self, generation: Generation) -> None:
        """Finish the line, and say what a person would not expect."""
        show_answer("\n")
        stats = generation.stats
        self._n_used = stats.n_prompt_tokens + stats.n_generated_tokens
        if generation.finish_reason == "context":
            then = "the next message drops the oldest turns" if self._template else larger_context(self._model)
            note(f"the context of {self._model.n_ctx} tokens is full, so the answer stops here; {then}")
        elif generation.finish_reason == "cancelled" and not stats.n_generated_tokens:
            note("stopped before the answer began; the message is not kept")
        if self._stats:
            tell_stats(stats)

    def _count(self, messages: list[Message]) -> int:
        """Tokens of a prompt made of these messages."""
        assert self._template is not None
        return len(self._model.tokenizer.encode(self._template.render(messages), parse_special=True))

    def _help(self, rest: str) -> None:
        _tell(_HELP)

    def _clear(self, rest: str) -> None:
        self._conversation = Conversation(self._conversation.system)
        self._n_used = 0
        note("the conversation is forgotten")

    def _regen(self, rest: str) -> None:
        if not self._conversation.turns:
            raise UsageError("there is no message to answer again")
        self._answer(self._conversation.without_last_answer())

    def _system(self, rest: str) -> None:
        template_of(self._model, self._raw, rest or None, verbose=False)  # refuses a text that would be lost
        self._conversation = self._conversation.with_system(rest or None)
        note("the system text is set" if rest else "there is no system text now")

    def _set(self, rest: str) -> None:
        if rest:
            name, _, value = rest.partition(" ")
            self._sampling = changed(self._sampling, name, value.strip())
        _tell(self._settings())

    def _show(self, rest: str) -> None:
        n_turns = len(self._conversation.turns)
        _tell(
            f"  model: {self._model.path}\n"
            f"  {describe_template(self._model, self._raw)}\n"
            f"  context: {self._n_used} of {self._model.n_ctx} tokens, {n_turns} turns\n"
            f"  threads: {self._model.n_threads}\n{_adapters(self._model)}"
            f"  system: {self._conversation.system or 'none'}\n{self._settings()}"
        )

    def _settings(self) -> str:
        """Those that people change most, and others that are not as they are by default."""
        settings = {name: getattr(self._sampling, name) for name in setting_names()}
        return "\n".join(
            f"  {name}: {_word(value)}"
            for name, value in settings.items()
            if name in COMMON or value != getattr(SamplingParams, name)
        )

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save")
        self._conversation.save(path)
        note(f"saved to {path}")

    def _load(self, rest: str) -> None:
        path = _path(rest, "/load")
        if self._template is None:
            raise UsageError("a model without a chat template has no conversation to go on with")
        self._conversation = Conversation.load(path)
        self._n_used = 0
        note(f"{path}: {len(self._conversation.turns)} turns")


def changed(sampling: SamplingParams, name: str, value: str) -> SamplingParams:
    """`sampling` with one setting changed by what a person typed. Raises UsageError."""
    name = {"temp": "temperature"}.get(name, name).replace("-", "_")
    if name not in setting_names():
        raise UsageError(f"no setting {name}; there are {', '.join(setting_names())}")
    change: dict[str, Any] = {name: read_setting(name, value)}
    return dataclasses.replace(sampling, **change)


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise UsageError(f"{command} needs a file name, as in: {command} chat.json")
    return Path(os.path.expanduser(rest))


def _adapters(model: Model) -> str:
    """A line about the adapters that are used, where there are any."""
    used = ", ".join(f"{scale:g} x {name}" for name, scale in getattr(model, "adapters", {}).items() if scale)
    return f"  adapters: {used}\n" if used else ""


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(repr, value)) or "none"
    return "none" if value is None else str(value)


def _tell(text: str) -> None:
    """Several lines that are not an answer."""
    print(harmless(text), file=sys.stderr, flush=True)
