"""The editor for messages: several lines, history, completion, and a status line. Built on prompt_toolkit."""

from __future__ import annotations

import os
from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions, has_selection
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.styles import Style

from edgellm.cli.chat.history import History
from edgellm.cli.chat.reader import MORE, PROMPT, Help, Message, is_open, unquoted
from edgellm.cli.terminal import one_line

# No colour that is unreadable on a light or a dark ground: what is quiet is dim in the terminal's own colour.
_STYLE = Style.from_dict(
    {
        "prompt": "bold ansidefault",
        "bottom-toolbar": "noreverse dim",
        "bottom-toolbar.text": "noreverse dim",
        "completion-menu": "noreverse bg:default fg:default",
        "completion-menu.completion": "bg:default fg:default",
        "completion-menu.completion.current": "reverse bg:default fg:default",
        "completion-menu.meta.completion": "bg:default fg:default",
        "completion-menu.meta.completion.current": "reverse bg:default fg:default",
        "scrollbar.background": "bg:default",
        "scrollbar.button": "reverse",
    }
)


class Editor:
    """See `Reader`. Enter sends, Alt-Enter begins a line; so does Enter between triple quotes. Tab completes."""

    def __init__(self, history: History, about: Help) -> None:
        self._history = history
        self._about = about
        typed = InMemoryHistory(history.messages)
        self._session: PromptSession[str] = PromptSession(
            message=[("class:prompt", PROMPT)],
            multiline=True,
            prompt_continuation=self._continuation,
            history=typed,
            completer=_Completer(about),
            complete_while_typing=False,
            bottom_toolbar=self._status,
            key_bindings=_keys(),
            style=_STYLE,
            color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
            reserve_space_for_menu=4,
        )
        # A terminal that cannot say where its cursor is has no status line; that is no reason to complain.
        self._session.app.renderer.cpr_not_supported_callback = None

    def read(self, prefilled: str = "") -> Message:
        block = self._session.prompt(default=prefilled).replace("\r\n", "\n").replace("\r", "\n")
        block.encode()
        self._history.add(block)
        return unquoted(block)

    def _status(self) -> StyleAndTextTuples:
        width = self._session.app.output.get_size().columns - 1
        return [("", one_line(self._about.status(width)))]

    def _continuation(self, width: int, line: int, is_soft_wrap: int) -> StyleAndTextTuples:
        return [("class:prompt", " " * width if is_soft_wrap else MORE)]


class _Completer(Completer):
    def __init__(self, about: Help) -> None:
        self._about = about

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        if "\n" in document.text:
            return
        for typed, word, meaning in self._about.complete(document.text_before_cursor):
            yield Completion(word, start_position=-len(typed), display_meta=meaning)


def _keys() -> KeyBindings:
    keys = KeyBindings()
    choosing = has_completions & Condition(lambda: _chosen())

    @keys.add("enter", filter=~has_selection)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if choosing():
            buffer.complete_state = None
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("tab")
    def _(event: KeyPressEvent) -> None:
        """At once, so that Enter right behind it sends the whole word; a choice is shown."""
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_next()
            return
        found = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
        if len(found) == 1:
            buffer.apply_completion(found[0])
        elif found:
            buffer.start_completion(insert_common_part=True)

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        """Away with what is typed; with nothing typed, say how to leave."""
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:exiting")

    return keys


def _chosen() -> bool:
    """Whether one of the completions that are shown has been chosen."""
    from prompt_toolkit.application import get_app

    buffer: Buffer = get_app().current_buffer
    return buffer.complete_state is not None and buffer.complete_state.current_completion is not None
