"""The loop of the chat: read a message, run a command or answer, and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.answer import Answer, larger_context, stream, tell_shifts, tell_stats
from edgellm.cli.asker import Asker
from edgellm.cli.chat import commands, settings
from edgellm.cli.chat.attached import Attached
from edgellm.cli.chat.history import History
from edgellm.cli.chat.kept import Keeper, Kept
from edgellm.cli.chat.reader import Help, LineReader, reader_of
from edgellm.cli.chat.settings import Behaviour
from edgellm.cli.chat.status import status_line
from edgellm.cli.chat.window import WAYS, Window
from edgellm.cli.conversation import Conversation, Message
from edgellm.cli.options import as_typed
from edgellm.cli.screen import View, view_of
from edgellm.cli.template import template_of
from edgellm.cli.terminal import remark, show_answer
from edgellm.errors import EdgellmError
from edgellm.params import SamplingParams

if TYPE_CHECKING:
    from edgellm.engine import GenerationStats, Model

LEAVING = ("exit",)  # words that leave without a slash, when they are all of a message


class Chat:
    """One conversation after the other with one model on a terminal. The commands read and change what is public.

    conversation:   all turns so far. sampling, behaviour: the settings.
    attached:       files that go with the next message.
    n_used:         tokens of the context after the last answer; last_stats: of that answer.
    is_raw:         --raw was given. is_plain_text: the model continues texts, each by itself.
    """

    def __init__(
        self,
        model: Model,
        sampling: SamplingParams,
        *,
        system: str | None = None,
        raw: bool = False,
        verbose: bool = False,
        behaviour: Behaviour | None = None,
        keep_as: str | None = None,
        asker: Asker | None = None,
    ) -> None:
        self.model = model
        self._asker = asker or Asker(model)
        self.sampling = sampling
        self.behaviour = behaviour or Behaviour()
        self.is_raw = raw
        self._template = template_of(model, raw, system, verbose)
        self.conversation = Conversation(system)
        self.n_used = 0
        self.last_stats: GenerationStats | None = None
        self.attached = Attached(model.n_text, lambda text: len(model.tokenizer.encode(text)))
        self._window = Window(model.n_text, self._count, larger_context(model))
        self._keeper = Keeper(keep_as) if keep_as else None
        self._view: View | None = None
        self._reader = reader_of(History(kept=keep_as is not None), Help(self._status, commands.completions))

    @property
    def is_plain_text(self) -> bool:
        return self._template is None

    @property
    def is_kept(self) -> bool:
        """Whether conversations are kept on the disk."""
        return self._keeper is not None

    @property
    def n_left_out(self) -> int:
        """Turns that the model does not read any more."""
        return min(self._window.first, len(self.conversation.turns))

    def loop(self) -> None:
        """Read and answer until the person leaves."""
        self._greet()
        while self._read_one():
            pass

    def resume(self, found: Kept) -> None:
        """Go on with a conversation that was kept, in its file."""
        self.begin_with(found.conversation)
        if self._keeper:
            self._keeper.go_on_with(found.path)
        remark(f"resumed: {found.line()}")

    def begin_with(self, conversation: Conversation) -> None:
        """What comes is another conversation."""
        self.conversation = conversation
        self.n_used = 0
        self._window.begin_anew()
        if self._keeper:
            self._keeper.begin_anew()

    def keep(self) -> None:
        """Write the conversation to its file, if there is something to keep."""
        if self._keeper and (self.conversation.turns or self._keeper.has_file):
            self._keeper.keep(self.conversation)

    def set(self, name: str, value: str) -> None:
        """Change a setting by what a person typed. Raises UsageError."""
        if settings.plain_name(name) in settings.WORDS:
            behaviour = settings.behaving(self.behaviour, name, value)
            self._asker.set_think(behaviour.think)
            self.behaviour, self._view = behaviour, None
        else:
            self.sampling = settings.changed(self.sampling, name, value)

    def changed_by_hand(self, text: str) -> str:
        """A text as the person changes it; empty for Ctrl-C and Ctrl-D."""
        try:
            return self._reader.read(prefilled=text)[0]
        except (EOFError, KeyboardInterrupt):
            show_answer("\n")
            return ""

    def answer(self, asked: Conversation) -> None:
        """Answer the last message of `asked`. The conversation changes only when something came."""
        generation = self._plain_answer(asked) if self._template is None else self._chat_answer(asked)
        before, pieces = self.conversation, []

        def came(piece: str) -> None:
            pieces.append(piece)
            if self._keeper and self._keeper.is_due():
                self._take(asked.with_answer("".join(pieces)))

        self._take(asked)
        try:
            stream(generation, self._shown_in(), came)
        finally:
            self._take(asked.with_answer("".join(pieces)) if pieces else before)
        self._end_answer(generation)
        if not pieces and generation.finish_reason == "stop":
            remark("the model answered with nothing; the message is not kept")

    def _read_one(self) -> bool:
        """Read a message and do what it says; False when the person leaves."""
        try:
            text, quoted = self._reader.read()
            if text:
                self._handle(text, quoted)
        except EOFError:
            show_answer("\n")
            return False
        except commands.Leave:
            return False
        except KeyboardInterrupt:
            show_answer("\n")
            remark("Ctrl-D or /bye leaves")
        except UnicodeError:
            remark("that line is not valid UTF-8; nothing was sent")
        return True

    def _handle(self, text: str, quoted: bool) -> None:
        """Run a command or answer a message; whatever goes wrong is a line, and the chat goes on."""
        try:
            if not quoted and text.strip() in LEAVING:
                raise commands.Leave
            if not quoted and text.lstrip().startswith("/"):
                commands.run(self, text)
            else:
                before = self.conversation
                self.answer(before.with_user(self.attached.before(text)))
                if self.conversation is not before:
                    self.attached.clear()
        except KeyboardInterrupt:
            show_answer("\n")
        except EdgellmError as error:
            remark(as_typed(error, _options()))
        except OSError as error:
            remark(f"{error.filename}: {error.strerror}" if error.filename else str(error))

    def _take(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.keep()

    def _chat_answer(self, asked: Conversation) -> Answer:
        n_before = self._window.first
        read = self._window.read_of(asked, self.behaviour.when_full)
        n_dropped = self._window.first - n_before
        if n_dropped > 0:
            what = "oldest turn is" if n_dropped == 1 else f"{n_dropped} oldest turns are"
            remark(f"the context of {self.model.n_text} tokens is full: the {what} forgotten")
        answer: Answer = self._asker.chat(read.messages(), **self._keywords)
        return answer

    def _plain_answer(self, asked: Conversation) -> Answer:
        prompt = asked.turns[-1].user
        return self.model.generate(prompt, **self._keywords)

    @property
    def _keywords(self) -> dict[str, Any]:
        """What is said of every answer."""
        return {**vars(self.sampling), "when_full": "shift" if self.behaviour.when_full == "shift" else "stop"}

    def _end_answer(self, generation: Answer) -> None:
        """Say what a person would not expect."""
        stats = self.last_stats = generation.stats
        # The last token of an answer needs no room, for nothing is computed behind it.
        self.n_used = min(len(generation.text_ids), self.model.n_text)
        full = f"the context of {self.model.n_text} tokens"
        tell_shifts(stats, self.model, remark)
        if generation.finish_reason == "context":
            remark(f"{full} is full, so the answer stops here; {self._what_then()}")
        elif generation.finish_reason == "cancelled" and not stats.n_generated_tokens:
            remark("stopped before the answer began; the message is not kept")
        if self.behaviour.stats:
            tell_stats(stats)

    def _what_then(self) -> str:
        if self._template is None or self.behaviour.when_full == "shift":
            return larger_context(self.model)
        if self.behaviour.when_full == "stop":
            return "/clear begins anew, /set when_full drop leaves out the oldest turns"
        return "the next message drops the oldest turns"

    def _shown_in(self) -> View:
        if self._view is None:
            self._view = view_of(markdown=self.behaviour.markdown and not self.is_plain_text)
        return self._view

    def _greet(self) -> None:
        remark("chatting; /? for help, Ctrl-D to leave")
        if self.is_plain_text and not self.is_raw:
            remark("each message is continued by itself: the model does not see those before")
        if isinstance(self._reader, LineReader) and not self.is_plain_text:  # which has no status line
            remark(f"the context holds {self.model.n_text} tokens, {WAYS[self.behaviour.when_full]} (/set when_full)")

    def _status(self, width: int) -> str:
        speed = self.last_stats.tokens_per_second if self.last_stats else 0.0
        way = "" if self.is_plain_text else WAYS[self.behaviour.when_full]
        return status_line(self.model.path.stem, self.n_used, self.model.n_text, way, speed, len(self.attached), width)

    def _ids(self, messages: list[Message]) -> list[int]:
        assert self._template is not None
        return self.model.tokenizer.encode(self._template.render(messages), parse_special=True)

    def _count(self, messages: list[Message]) -> int:
        """Tokens of a prompt made of these messages, with the tools that it tells of."""
        assert self._template is not None
        if not self._asker.tools:
            return len(self._ids(messages))
        from edgellm.engine.asking import prompt_with_tools
        from edgellm.engine.tools import Tools

        prompt, _ = prompt_with_tools(self._template, messages, Tools(self._asker.tools), {})
        return len(self.model.tokenizer.encode(prompt, parse_special=True))


def _options() -> list[click.Parameter]:
    """Those of the command that the chat was begun with, but for what is called by its own name in /set."""
    context = click.get_current_context(silent=True)
    return [option for option in context.command.params if option.name not in settings.names()] if context else []
