"""How a run of training ended, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgellm.cli.terminal import size_text
from edgellm.cli.train.live import duration

if TYPE_CHECKING:
    from edgellm.train.loop import Step
    from edgellm.train.session import Summary


def outcome_lines(summary: Summary, last: Step | None) -> Iterator[tuple[str, str]]:
    """What was trained, how well, how fast and at what cost, by name."""
    ends = {"early": ", stopped early", "asked": ", stopped"}.get(summary.stopped, "")
    epochs = f", {last.epoch:.3g} epochs" if last else ""
    yield "trained", f"{summary.step} of {summary.n_steps} steps{epochs}, in {duration(summary.seconds)}{ends}"
    if summary.loss is not None:
        yield "loss", f"{summary.loss:.4f}, mean of the last steps"
    if summary.validation_loss is not None:
        yield "validation", f"{summary.validation_loss:.4f} at best"
    if summary.weights_of != summary.step:
        yield "weights", f"those of step {summary.weights_of}, the best"
    seconds = f"{summary.n_tokens:,} tokens in {summary.train_seconds:.1f} s"
    yield "speed", f"{summary.tokens_per_second:.0f} tok/s, {seconds}"
    if summary.joules is None:
        yield "energy", "this machine does not tell"
    else:
        each = f", {1000 * summary.joules / summary.n_tokens:.1f} mJ a token" if summary.n_tokens else ""
        yield "energy", f"{summary.joules:.1f} J of the whole machine{each}"
    yield "memory", f"{size_text(summary.peak_memory)} at most"
