"""Showing an answer while it is made, and stopping it with Ctrl-C."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from edgellm.cli.asker import ToolAnswer
from edgellm.cli.progress import Progress
from edgellm.cli.screen import View
from edgellm.cli.terminal import quiet_keyboard, remark

if TYPE_CHECKING:
    from edgellm.engine import GenerationStats, Model

_QUIET_SECONDS = 0.4  # before a prompt that is being read shows how far it is
_LOOK_SECONDS = 0.1


class Answer(Protocol):
    """What is shown of an answer: a `Generation`, or several rounds of one."""

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def stats(self) -> GenerationStats: ...

    @property
    def n_prompt_done(self) -> int: ...

    @property
    def text_ids(self) -> list[int]: ...

    def __iter__(self) -> Iterator[str]: ...

    def cancel(self) -> None: ...


def stream(generation: Answer, view: View, came: Callable[[str], None] | None = None) -> str:
    """Show the pieces of an answer as they come, and return all of it. While the prompt is read, say how far that is.

    Ctrl-C ends the answer: its `finish_reason` is then "cancelled". came(piece) is called for every piece.
    """
    pieces: list[str] = []
    n_ended = 0  # pieces that the view has ended with, for something else that came between

    def take(piece: str) -> None:
        pieces.append(piece)
        if came:
            came(piece)

    try:
        with _ctrl_c_cancels(generation), quiet_keyboard(), Reading(generation) as reading:

            def make_room() -> None:
                nonlocal n_ended
                reading.end()
                if len(pieces) > n_ended:
                    view.end()
                n_ended = len(pieces)

            if isinstance(generation, ToolAnswer):
                generation.aside = make_room
            for piece in generation:
                reading.end()
                view.show(piece)
                if n_ended and n_ended == len(pieces):
                    take("\n\n")
                take(piece)
            reading.end()
        if not n_ended or len(pieces) > n_ended:
            view.end()
    except BaseException:
        generation.cancel()  # a closed pipe or a second Ctrl-C: let the worker threads rest
        raise
    return "".join(pieces)


class Reading:
    """A line on a terminal that says how much of the prompt is read, and how long the rest will take."""

    def __init__(self, generation: Answer) -> None:
        self._generation = generation
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True) if sys.stderr.isatty() else None

    def __enter__(self) -> Reading:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Take the line away; the answer begins."""
        if self._thread:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _show(self) -> None:
        if self._over.wait(_QUIET_SECONDS):
            return
        total = self._generation.stats.n_prompt_tokens
        begun, first = time.monotonic(), self._generation.n_prompt_done
        with Progress("reading the prompt") as progress:
            while not self._over.wait(_LOOK_SECONDS):
                done = self._generation.n_prompt_done
                seconds = time.monotonic() - begun
                left = f"{seconds * (total - done) / (done - first):.0f} s left" if done > first else f"{seconds:.0f} s"
                progress(done, total, left)


def tell_stats(stats: GenerationStats) -> None:
    """One line of timings on standard error."""
    n_draft, n_accepted = stats.n_draft_tokens, stats.n_accepted_tokens
    drafted = f" ({n_accepted} of {n_draft} drafts accepted)" if n_draft else ""
    remark(
        f"prompt {stats.n_prompt_tokens} tokens ({stats.n_reused_tokens} reused), "
        f"{stats.prompt_tokens_per_second:.1f} tokens/s; "
        f"answer {stats.n_generated_tokens} tokens{drafted}, {stats.tokens_per_second:.1f} tokens/s; "
        f"first token after {stats.first_token_seconds:.2f} s"
    )


def tell_shifts(stats: GenerationStats, model: Model, tell: Callable[[str], None]) -> None:
    """Say of an answer that has outgrown the context how it went on."""
    if stats.n_shifts:
        times = "once" if stats.n_shifts == 1 else f"{stats.n_shifts} times"
        tell(f"the context of {model.n_text} tokens was full {times}, and the answer went on without the oldest of "
             "what was read")  # fmt: skip


def larger_context(model: Model) -> str:
    """What to do about a context that is too short for something."""
    most = getattr(getattr(model, "config", None), "n_ctx_train", math.inf)
    if model.n_ctx < most:
        return "a shorter text helps, or a larger context (-c)"
    return f"only a shorter text helps: this model was trained on no more than {most} tokens"


@contextlib.contextmanager
def _ctrl_c_cancels(generation: Answer) -> Iterator[None]:
    """The first Ctrl-C asks the answer to end, a second one interrupts as usual. Where it is ignored, it stays so."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is signal.SIG_IGN:
        yield  # signals belong to the main thread
        return

    def cancel(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, usual)
        generation.cancel()

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
