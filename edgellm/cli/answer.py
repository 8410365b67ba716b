"""Showing an answer while it is made, and stopping it with Ctrl-C."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgellm.cli.terminal import note, show_answer

if TYPE_CHECKING:
    from edgellm.engine import Generation, GenerationStats, Model


def stream(generation: Generation) -> str:
    """Write the pieces of an answer to standard output as they come, and return all of it.

    Ctrl-C ends the answer: its `finish_reason` is then "cancelled".
    """
    pieces = []
    try:
        with _ctrl_c_cancels(generation):
            for piece in generation:
                show_answer(piece)
                pieces.append(piece)
    except BaseException:
        generation.cancel()  # a closed pipe or a second Ctrl-C: let the worker threads rest
        raise
    return "".join(pieces)


def tell_stats(stats: GenerationStats) -> None:
    """One line of timings on standard error."""
    note(
        f"prompt {stats.n_prompt_tokens} tokens ({stats.n_reused_tokens} reused), "
        f"{stats.prompt_tokens_per_second:.1f} tokens/s; "
        f"answer {stats.n_generated_tokens} tokens, {stats.tokens_per_second:.1f} tokens/s; "
        f"first token after {stats.first_token_seconds:.2f} s"
    )


def larger_context(model: Model) -> str:
    """What to do about a context that is too short for something."""
    most = getattr(getattr(model, "config", None), "n_ctx_train", math.inf)
    if model.n_ctx < most:
        return "a shorter text helps, or a larger context (-c)"
    return f"only a shorter text helps: this model was trained on no more than {most} tokens"


@contextlib.contextmanager
def _ctrl_c_cancels(generation: Generation) -> Iterator[None]:
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
